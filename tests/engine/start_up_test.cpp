// The machine of start-up: rows in turn, phases beside each other, agreements after failures, records of all of it.
#include "engine/start_up.h"

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/kernel_build.h"
#include "engine/kernel_rehearsal.h"
#include "tests/model/goldens.h"

namespace plait {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

StartUp::Row alone(StartPhase phase, std::function<Status(const Status&)> run) {
  return {.phases = {{phase, std::move(run)}}};
}
Status well(const Status&) {
  return {};
}

// What a listener hears of last, and the world.
class Heard : public StartListener {
 public:
  void met(const std::shared_ptr<comm::World>& world) override {
    const std::lock_guard lock(mutex_);
    world_ = world;
  }
  void moved(const std::vector<StartRecord>& of_all_hosts) override {
    const std::lock_guard lock(mutex_);
    records_ = of_all_hosts;
  }
  std::weak_ptr<comm::World> world() const {
    const std::lock_guard lock(mutex_);
    return world_;
  }
  std::vector<StartRecord> records() const {
    const std::lock_guard lock(mutex_);
    return records_;
  }

 private:
  mutable std::mutex mutex_;
  std::weak_ptr<comm::World> world_;
  std::vector<StartRecord> records_;
};

TEST(StartUp, PhasesOfARowGoOnBesideEachOther) {
  StartUp start_up(0, 0, 1, {});
  std::atomic<int> inside{0};
  std::atomic<bool> met{false};
  const auto meet = [&](const Status&) -> Status {
    ++inside;
    for (int i = 0; i < 5000 && inside < 2; ++i) std::this_thread::sleep_for(1ms);
    met = inside == 2;
    return {};
  };
  const StartUp::Row rows[] = {alone(StartPhase::kMemory, well),
                               {.phases = {{StartPhase::kWeights, meet}, {StartPhase::kKernels, meet}}},
                               alone(StartPhase::kRanks, well)};
  ASSERT_FALSE(start_up.run(rows).has_error());
  EXPECT_TRUE(met);
  std::vector<StartPhase> phases;
  for (const StartRecord& record : start_up.records()) {
    phases.push_back(record.phase);
    EXPECT_TRUE(record.ended);
  }
  EXPECT_EQ(phases.size(), 4u);
  EXPECT_EQ(phases.front(), StartPhase::kMemory);
  EXPECT_EQ(phases.back(), StartPhase::kRanks);
}

TEST(StartUp, AFailureStopsItsRowAndReachesTheAgreementOnly) {
  StartUp start_up(0, 0, 1, {});
  std::atomic<bool> stopped{false};
  std::string heard;
  bool went_on = false;
  const StartUp::Row rows[] = {
      {.phases = {{StartPhase::kWeights,
                   [&](const Status&) -> Status {
                     for (int i = 0; i < 5000 && !stopped; ++i) std::this_thread::sleep_for(1ms);
                     return cancelled("given up");
                   },
                   [&](const Error&) { stopped = true; }},
                  {StartPhase::kKernels,
                   [](const Status&) -> Status { return corrupt("kernel 'x' does not compile"); }}}},
      alone(StartPhase::kMemory,
            [&](const Status&) -> Status {
              went_on = true;
              return {};
            }),
      {.phases = {{StartPhase::kBuilt,
                   [&](const Status& so_far) -> Status {
                     heard = so_far.error().message;
                     return invalid("host 0: " + heard);
                   }}},
       .agreement = true},
      alone(StartPhase::kRanks,
            [&](const Status&) -> Status {
              went_on = true;
              return {};
            }),
  };
  const Status ended = start_up.run(rows);
  EXPECT_TRUE(stopped);
  EXPECT_FALSE(went_on);
  EXPECT_EQ(heard, "start-up, kernels: kernel 'x' does not compile");
  ASSERT_TRUE(ended.has_error());
  EXPECT_EQ(ended.error().message, "host 0: " + heard);
}

TEST(StartUp, TheListenerHearsOfPhasesAtOnceAndOfItemsSoon) {
  Heard heard;
  StartUp start_up(3, 6, 2, &heard);
  const auto heard_of = [&](const std::function<bool(const StartRecord&)>& wanted) {
    for (int i = 0; i < 5000; ++i) {
      if (std::ranges::any_of(heard.records(), wanted)) return true;
      std::this_thread::sleep_for(1ms);
    }
    return false;
  };
  const StartUp::Row rows[] = {alone(StartPhase::kKernels, [&](const Status&) -> Status {
    EXPECT_TRUE(heard_of([](const StartRecord& record) {
      return record.phase == StartPhase::kKernels && !record.ended && record.host == 3 && record.first_rank == 6 &&
             record.ranks == 2;
    }));
    start_up.note(StartPhase::kKernels, "fp8_gemm", 3, 12);
    EXPECT_TRUE(heard_of([](const StartRecord& record) { return record.item == "fp8_gemm" && record.done == 3; }));
    return {};
  })};
  ASSERT_FALSE(start_up.run(rows).has_error());
  start_up.serve();
  EXPECT_EQ(heard.records().back().phase, StartPhase::kServing);
  EXPECT_TRUE(heard.records().front().ended);
}

TEST(StartRecords, TheSummaryNamesTheSlowestHost) {
  const StartRecord weights{.host = 0, .phase = StartPhase::kWeights, .seconds = 9, .ended = true};
  const StartRecord built{.host = 0, .phase = StartPhase::kBuilt, .seconds = 8};
  const StartRecord kernels{
      .host = 2, .phase = StartPhase::kKernels, .item = "fp8_gemm", .seconds = 7, .done = 3, .total = 12};
  EXPECT_EQ(summary(std::vector{weights, built, kernels}), "kernels: fp8_gemm (3 of 12), host 2");
  EXPECT_EQ(summary(std::vector{weights, built}), "built");
  EXPECT_EQ(summary(std::vector{weights}), "");
  const StartRecord of_ranks{.host = 1, .first_rank = 2, .ranks = 2, .phase = StartPhase::kRanks, .seconds = 2};
  EXPECT_THAT(describe(std::vector{weights, built, kernels, of_ranks}),
              ElementsAre("host 0 (rank 0) has been in built for 8.00 s",
                          "host 2 (rank 0) has been in kernels for 7.00 s: fp8_gemm (3 of 12)",
                          "host 1 (ranks 2 to 3) has been in ranks for 2.00 s"));
  const StartRecord serving{.host = 1, .phase = StartPhase::kServing};
  EXPECT_THAT(describe(std::vector{weights, built, serving}), ::testing::IsEmpty());
  const std::vector<StartRecord> later = aged({weights, built}, std::chrono::steady_clock::now() - 100s);
  EXPECT_EQ(later[0].seconds, 9);
  EXPECT_NEAR(later[1].seconds, 108, 5);
  const HostNote note{.records = {weights, kernels}, .compiles_after_ready = 5};
  const HostNote got = decode_host_note(encode(note)).value();
  EXPECT_EQ(encode(got), encode(note));
  EXPECT_EQ(got.records[1].item, "fp8_gemm");
}

// A folder with a rehearsal in it, and the variable that names it.
class Rehearsal : public ::testing::Test {
 protected:
  Rehearsal() {
    std::string pattern = (std::filesystem::temp_directory_path() / "plait-rehearsal-XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
  }
  ~Rehearsal() override {
    ::unsetenv("PLAIT_REHEARSE_KERNELS");
    std::filesystem::remove_all(folder_);
  }
  void write(const std::string& json) {
    std::ofstream(folder_ / "kernels.json") << json;
    ::setenv("PLAIT_REHEARSE_KERNELS", (folder_ / "kernels.json").c_str(), 1);
  }
  static Result<ManifestOfRank> manifests(DisaggregationMode role) {
    const EngineOptions options{.disaggregation = role};
    return rehearsed_manifests({ModelConfig{}, options.parallel, options});
  }
  static std::vector<std::string> names(const ManifestOfRank& manifests, int rank) {
    std::vector<std::string> names;
    const auto manifest = manifests(rank);
    for (const jit::ManifestEntry& entry : manifest->kernels) names.push_back(entry.source.name);
    return names;
  }

  std::filesystem::path folder_;
};

constexpr const char* kThreeKernels = R"({"kernels": [
  {"name": "prompts", "entry": "k", "text": "k", "seconds": 1, "modes": ["prefill"]},
  {"name": "tokens", "entry": "k", "text": "kk", "seconds": 1, "modes": ["decode"], "constants": {"kRows": 64}},
  {"name": "both", "entry": "k", "text": "kkk", "seconds": 1, "ranks": [1, 3]}]})";

TEST_F(Rehearsal, ARoleNeverBuildsTheOtherOnesKernels) {
  write(kThreeKernels);
  const ManifestOfRank all = manifests(DisaggregationMode::kNull).value();
  EXPECT_THAT(names(all, 0), ElementsAre("prompts", "tokens"));
  EXPECT_THAT(names(all, 1), ElementsAre("both", "prompts", "tokens"));
  const ManifestOfRank prefill = manifests(DisaggregationMode::kPrefill).value();
  EXPECT_THAT(names(prefill, 1), ElementsAre("both", "prompts"));
  const ManifestOfRank decode = manifests(DisaggregationMode::kDecode).value();
  EXPECT_THAT(names(decode, 3), ElementsAre("both", "tokens"));
  EXPECT_EQ(decode(3)->kernels[1].source.constants.at("kRows"), 64);
  // Hosts that differ must not meet.
  EXPECT_NE(KernelBuild(2, 2, prefill).digest(), KernelBuild(2, 2, decode).digest());
  EXPECT_EQ(KernelBuild(2, 2, prefill).digest(), KernelBuild(2, 2, prefill).digest());
  EXPECT_TRUE(KernelBuild(2, 2, {}).empty());
}

TEST_F(Rehearsal, SaysWhatIsWrongInItsFile) {
  const std::pair<const char*, const char*> broken[] = {
      {"{}", "kernels: must be a list"},
      {R"({"kernels": [1]})", "kernels[0]"},
      {R"({"kernels": [{"name": "a", "entry": "k", "text": "k"}]})", "kernels[0].seconds"},
      {R"({"kernels": [{"name": "a", "entry": "k", "text": "#include <x>", "seconds": 1}]})", "include"},
      {R"({"kernels": [{"name": "a", "entry": "k", "text": "k", "seconds": 1, "modes": ["verify"]}]})", "verify"},
      {R"({"kernels": [{"name": "a", "entry": "k", "text": "k", "seconds": 1, "ranks": [-1]}]})", "ranks"},
  };
  for (const auto& [json, expected] : broken) {
    write(json);
    const auto refused = manifests(DisaggregationMode::kNull);
    ASSERT_TRUE(refused.has_error()) << json;
    EXPECT_THAT(refused.error().message, HasSubstr(expected));
    EXPECT_THAT(refused.error().message, HasSubstr("PLAIT_REHEARSE_KERNELS"));
  }
}

// What an engine of each role does before it serves.
TEST(EngineStart, RolesTouchTheirModesAndEveryDataParallelRankIsProbedByName) {
  for (const DisaggregationMode role :
       {DisaggregationMode::kNull, DisaggregationMode::kPrefill, DisaggregationMode::kDecode}) {
    EngineOptions options;
    options.model_path = testing::golden_path("demo").string();
    options.threads = 1;
    options.max_total_tokens = 1024;
    options.max_running_requests = 8;
    options.disaggregation = role;
    options.parallel = {.tp_size = 2, .dp_size = 2, .enable_dp_attention = true};
    Heard heard;
    const auto engine = Engine::create(options, &heard);
    ASSERT_TRUE(engine.has_value()) << engine.error().message;
    EXPECT_FALSE(heard.world().expired());
    std::map<StartPhase, StartRecord> records;
    for (const StartRecord& record : heard.records()) records[record.phase] = record;
    EXPECT_EQ(records[StartPhase::kFirstTouch].total, role == DisaggregationMode::kNull ? 3u : 1u);
    EXPECT_EQ(records[StartPhase::kFirstTouch].done, records[StartPhase::kFirstTouch].total);
    EXPECT_EQ(records[StartPhase::kProbe].total, 2u);
    EXPECT_EQ(records[StartPhase::kProbe].done, 2u);
    EXPECT_EQ(records.rbegin()->first, StartPhase::kServing);
    EXPECT_EQ(records.size(), 11u);
    EXPECT_EQ((*engine)->compiles_after_ready(), 0u);
  }
}

}  // namespace
}  // namespace plait
