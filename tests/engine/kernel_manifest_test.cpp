// That manifests hold every kernel that a step can ask for, and no other.
#include "engine/kernel_manifest.h"

#include <chrono>
#include <list>
#include <map>
#include <random>
#include <set>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/agreed_rows.h"
#include "kernels/cuda/gemm_chooser.h"
#include "kernels/cuda/gemm_table.h"
#include "model/model_facts.h"
#include "tests/engine/manifest_layouts.h"
#include "tests/engine/rank_launches.h"
#include "tests/support/effort.h"
#include "tests/topology/configurations.h"
#include "topology/rules.h"

namespace plait {
namespace {

using cuda::GemmKernel;
using cuda::GemmShape;
using ::testing::HasSubstr;
using testing::Launch;
using testing::LaunchingRank;

std::set<Digest> keys_of(const jit::KernelManifest& manifest) {
  std::set<Digest> keys;
  for (const jit::ManifestEntry& entry : manifest.kernels) keys.insert(kernel_key(entry.source, {}));
  return keys;
}

// Keys of what is launched. A key takes a hash of the whole source, so each kernel's is made once.
class LaunchedKeys {
 public:
  const Digest& of(const cuda::DeviceModel& device, const Launch& launch) {
    if (const auto* gemm = std::get_if<GemmShape>(&launch.operation)) {
      const auto [choice, is_new] = chosen_.try_emplace(
          {device.name, gemm->rows, gemm->format, gemm->n, gemm->k, gemm->groups, gemm->result, launch.rows}, nullptr);
      if (is_new) {
        const GemmKernel kernel = choose_gemm(device, *gemm, launch.rows);
        choice->second = &known(name_of(kernel), kernel, [&] { return source_of(kernel); });
      }
      return *choice->second;
    }
    const auto& shape = std::get<cuda::QuantizeShape>(launch.operation);
    return known(name_of(shape), shape, [&] { return quantize_source(shape); });
  }
  size_t distinct() const { return distinct_; }

 private:
  using Which = std::variant<GemmKernel, cuda::QuantizeShape>;
  struct Entry {
    Which which;
    Digest key;
  };

  template <typename Source>
  const Digest& known(const std::string& name, const Which& which, const Source& source) {
    std::list<Entry>& entries = entries_[name];
    for (const Entry& entry : entries)
      if (entry.which == which) return entry.key;
    ++distinct_;
    return entries.emplace_back(Entry{which, kernel_key(source(), {})}).key;
  }

  std::map<std::string, std::list<Entry>> entries_;
  std::map<std::tuple<std::string, cuda::GemmRows, cuda::GemmFormat, int64_t, int64_t, int, cuda::GemmResult, int64_t>,
           const Digest*>
      chosen_;
  size_t distinct_ = 0;
};

// A rank of a model, its manifest, and what it launches.
struct RankCase {
  RankCase(ModelConfig model, const ParallelConfig& parallel, const CallLimits& limits)
      : config(std::move(model)),
        topology(parallel),
        plans(*make_step_plans(topology, model_facts(config))),
        limits(limits) {}

  Result<jit::KernelManifest> manifest(int rank, const cuda::DeviceModel& device, const CallLimits& with) const {
    PLAIT_ASSIGN_OR_RETURN(const std::vector<RankCall> calls, rank_calls(config, topology, plans, with, rank));
    return kernel_manifest(calls, device, "sm_90a");
  }

  ModelConfig config;
  Topology topology;
  std::vector<Plan> plans;
  CallLimits limits;
};

int64_t log_uniform(std::mt19937& random, int64_t most) {
  const double log = std::uniform_real_distribution<double>(0, std::log2(static_cast<double>(most)))(random);
  return static_cast<int64_t>(std::exp2(log));
}

CallLimits random_limits(std::mt19937& random) {
  CallLimits limits;
  limits.max_running_requests = log_uniform(random, 1024);
  limits.chunked_prefill_tokens = log_uniform(random, 16384);
  limits.prompt_logprob_rows = log_uniform(random, 256);
  limits.mode = static_cast<DisaggregationMode>(random() % 3);
  return limits;
}

// Any valid configuration of up to eight ranks, or one of up to sixty-four.
ParallelConfig random_parallel(std::mt19937& random, const ModelFacts& facts) {
  static const std::vector<ParallelConfig> small = test::valid_configurations(8);
  for (;;) {
    ParallelConfig config = small[random() % small.size()];
    if (random() % 4 == 0) {
      const auto one_of = [&](std::initializer_list<int> values) { return values.begin()[random() % values.size()]; };
      config = {.tp_size = one_of({8, 16, 32}), .pp_size = one_of({1, 1, 2, 3})};
      config.dp_size = one_of({1, 2, 4, 8, 16, 32});
      config.enable_dp_attention = config.dp_size > 1;
      config.ep_size = one_of({1, 4, 8, 16});
      config.moe_dp_size = one_of({1, 1, 1, 2, 4});
      config.attn_cp_size = one_of({1, 1, 2, 4});
      if (random() % 2 == 0) config.moe_a2a_backend = MoeA2a::kAllToAll;
      if (random() % 2 == 0) config.moe_dense_tp_size = one_of({1, 2, 8});
    }
    config.deepep_mode = static_cast<DeepepMode>(random() % 3);
    const ParallelVerdict verdict = judge(config, &facts);
    if (verdict.accepted()) return verdict.config;
  }
}

std::string describe(const RankCase& each, const Launch& launch) {
  return fmt::format("{}: {} rows of {} ({} prompt tokens, {} requests, {})", to_flags(each.topology.config()),
                     launch.rows, name_of(launch.matrix), each.limits.chunked_prefill_tokens,
                     each.limits.max_running_requests, name_of(each.limits.mode));
}

TEST(KernelManifest, HoldsEveryKernelThatAStepAsksFor) {
  const auto begin = std::chrono::steady_clock::now();
  const auto models = testing::published_models();
  std::mt19937 random(7);
  LaunchedKeys launched;
  int64_t draws = 0, cases = 0, listed = 0, most = 0;
  for (const int64_t wanted = repetitions(100000); draws < wanted; ++cases) {
    const testing::PublishedModel& model = models[random() % models.size()];
    const RankCase each(model.config, random_parallel(random, model_facts(model.config)), random_limits(random));
    const cuda::DeviceModel& device = cuda::known_devices()[random() % cuda::known_devices().size()];
    const int rank = static_cast<int>(random() % static_cast<uint32_t>(each.topology.world()));
    const auto manifest = each.manifest(rank, device, each.limits);
    ASSERT_FALSE(manifest.has_error()) << to_flags(each.topology.config()) << ": " << manifest.error().message;
    const std::set<Digest> keys = keys_of(*manifest);
    ASSERT_EQ(keys.size(), manifest->kernels.size()) << "two entries have one key";
    listed += std::ssize(keys);
    most = std::max(most, std::ssize(keys));
    const LaunchingRank launching(each.config, each.topology, each.plans, each.limits, rank);
    for (int step = 0; step < 8; ++step)
      for (const Launch& launch : launching.launches(launching.random_steps(random), random)) {
        ASSERT_TRUE(keys.contains(launched.of(device, launch))) << model.name << " " << describe(each, launch);
        ++draws;
      }
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  fmt::print(
      "{} reachable (call, rows) of {} ranks in as many configurations: each in its manifest; {} distinct kernels; "
      "{:.1f} kernels a manifest, at most {}; {:.1f} s\n",
      draws, cases, launched.distinct(), static_cast<double>(listed) / static_cast<double>(cases), most, took.count());
}

// Any kernels for any classes of the rank's products.
cuda::DeviceModel with_random_table(std::mt19937& random, std::span<const RankCall> calls) {
  cuda::DeviceModel device = *cuda::find_device("h200");
  cuda::GemmTable table{.device = device.name};
  for (const RankCall& call : calls) {
    const auto* shape = std::get_if<GemmShape>(&call.operation);
    if (shape == nullptr || table.find(*shape) != nullptr) continue;
    cuda::GemmTable::Product product{.shape = *shape};
    for (const int64_t rows : cuda::rows_classes(1, 4096)) {
      const std::vector<GemmKernel> all = all_candidates(device, *shape, rows);
      const GemmKernel& any = all[random() % all.size()];
      if (random() % 3 == 0) continue;  // left to the model
      product.fastest.push_back({rows, any, 1e-5});
      if (summing_order(any) == deterministic_order(*shape)) product.deterministic.push_back({rows, any, 1e-5});
    }
    table.products.push_back(std::move(product));
  }
  device.table = std::make_shared<const cuda::GemmTable>(std::move(table));
  device.deterministic = random() % 2 == 0;
  return device;
}

TEST(KernelManifest, HoldsEveryKernelThatATunedTableNames) {
  const auto models = testing::published_models();
  std::mt19937 random(17);
  int64_t draws = 0, cases = 0;
  for (; cases < repetitions(24); ++cases) {
    const testing::PublishedModel& model = models[random() % models.size()];
    const RankCase each(model.config, random_parallel(random, model_facts(model.config)), random_limits(random));
    const int rank = static_cast<int>(random() % static_cast<uint32_t>(each.topology.world()));
    const auto calls = rank_calls(each.config, each.topology, each.plans, each.limits, rank);
    ASSERT_FALSE(calls.has_error()) << calls.error().message;
    const cuda::DeviceModel device = with_random_table(random, *calls);
    const std::set<Digest> keys = keys_of(*each.manifest(rank, device, each.limits));
    LaunchedKeys launched;
    const LaunchingRank launching(each.config, each.topology, each.plans, each.limits, rank);
    for (int step = 0; step < 20; ++step)
      for (const Launch& launch : launching.launches(launching.random_steps(random), random)) {
        ASSERT_TRUE(keys.contains(launched.of(device, launch))) << model.name << " " << describe(each, launch);
        ++draws;
      }
  }
  fmt::print("{} reachable (call, rows) of {} ranks with random tables: each in its manifest\n", draws, cases);
}

// Layouts of several kinds, each with limits and a rank.
struct ExactCase {
  testing::ManifestLayout layout;
  CallLimits limits;
  int rank = 0;
};

std::vector<ExactCase> exact_cases() {
  std::vector<ExactCase> cases;
  for (const testing::ManifestLayout& layout : testing::manifest_layouts())
    for (int stage = 0; stage < layout.parallel.pp_size; ++stage)
      cases.push_back({layout, {}, stage * layout.parallel.tp_size});
  const testing::ManifestLayout v3 = testing::manifest_layouts().front();
  cases.push_back({v3, {.mode = DisaggregationMode::kPrefill}});
  cases.push_back({v3, {.mode = DisaggregationMode::kDecode}});
  cases.push_back({{"DeepSeek-V3 tp8 cp4", testing::deepseek_v3(), {.tp_size = 8, .attn_cp_size = 4}}, {}, 5});
  cases.push_back({{"DeepSeek-V3 tp16 dp4",
                    testing::deepseek_v3(),
                    {.tp_size = 16, .dp_size = 4, .enable_dp_attention = true, .ep_size = 16}},
                   {.max_running_requests = 100, .chunked_prefill_tokens = 1000},
                   15});
  cases.push_back({{"DeepSeek-V2 tp8 moe-dp2 a2a",
                    testing::deepseek_v2(),
                    {.tp_size = 8, .ep_size = 4, .moe_dp_size = 2, .moe_a2a_backend = MoeA2a::kAllToAll}},
                   {.max_running_requests = 50, .chunked_prefill_tokens = 4096},
                   6});
  return cases;
}

// The same check notices what is missing: without any one kernel some step fails, so none is there for nothing.
TEST(KernelManifest, HoldsNothingElse) {
  constexpr int kMostSteps = 30000;
  const cuda::DeviceModel device = *cuda::find_device("h200");
  int64_t mutants = 0, draws = 0, steps = 0, most_steps = 0;
  for (const auto& [layout, limits, rank] : exact_cases()) {
    const ModelFacts facts = model_facts(layout.config);
    const ParallelVerdict verdict = judge(layout.parallel, &facts);
    ASSERT_TRUE(verdict.accepted()) << layout.name;
    const RankCase each(layout.config, verdict.config, limits);
    const jit::KernelManifest manifest = *each.manifest(rank, device, limits);
    // Manifests without one of their kernels that no step has failed yet.
    std::map<Digest, const jit::ManifestEntry*> unnoticed;
    for (const jit::ManifestEntry& entry : manifest.kernels) unnoticed[kernel_key(entry.source, {})] = &entry;
    mutants += std::ssize(unnoticed);
    LaunchedKeys launched;
    std::mt19937 random(static_cast<uint32_t>(rank + 1));
    const LaunchingRank launching(each.config, each.topology, each.plans, limits, rank);
    int step = 0;
    for (; step < kMostSteps && !unnoticed.empty(); ++step)
      for (const Launch& launch : launching.launches(launching.random_steps(random), random)) {
        unnoticed.erase(launched.of(device, launch));
        ++draws;
      }
    steps += step;
    most_steps = std::max<int64_t>(most_steps, step);
    for (const auto& [key, entry] : unnoticed)
      ADD_FAILURE() << layout.name << ", rank " << rank << ": nobody asks for " << entry->source.name << " ("
                    << entry->calls.front() << ")";
  }
  fmt::print("{} manifests without one of their kernels: each fails some of {} draws in {} steps, at most {} a rank\n",
             mutants, draws, steps, most_steps);
}

// Nor does it trust the ranges of the list that it checks: with a list for smaller steps it fails.
TEST(KernelManifest, ASmallerRangeIsNoticed) {
  const cuda::DeviceModel device = *cuda::find_device("h200");
  for (const testing::ManifestLayout& layout : testing::manifest_layouts()) {
    const RankCase each(layout.config, layout.parallel, {});
    for (const CallLimits& smaller :
         {CallLimits{.max_running_requests = 8, .chunked_prefill_tokens = 256},
          CallLimits{.mode = DisaggregationMode::kPrefill}, CallLimits{.mode = DisaggregationMode::kDecode}}) {
      const std::set<Digest> keys = keys_of(*each.manifest(0, device, smaller));
      LaunchedKeys launched;
      std::mt19937 random(3);
      const LaunchingRank launching(each.config, each.topology, each.plans, each.limits, 0);
      int64_t missing = 0;
      for (int step = 0; step < 200; ++step)
        for (const Launch& launch : launching.launches(launching.random_steps(random), random))
          missing += !keys.contains(launched.of(device, launch));
      EXPECT_GT(missing, 0) << layout.name;
    }
  }
}

TEST(KernelManifest, StaysUnderAHundredForARank) {
  for (const auto& [prompt_tokens, requests] : {std::pair{2048, 256}, std::pair{8192, 256}, std::pair{16384, 2048}})
    for (const testing::ManifestLayout& layout : testing::manifest_layouts()) {
      ManifestQuestion question{.parallel = layout.parallel, .device = *cuda::find_device("h200")};
      question.limits.chunked_prefill_tokens = prompt_tokens;
      question.limits.max_running_requests = requests;
      const auto ranks = kernels_of_ranks(layout.config, question);
      ASSERT_FALSE(ranks.has_error()) << ranks.error().message;
      for (const RankKernels& each : *ranks) {
        double seconds = 0;
        for (const jit::ManifestEntry& entry : each.manifest.kernels) seconds += entry.compile_seconds;
        fmt::print("{:<32} {:>5} prompt tokens, {:>4} requests, stage {}: {} kernels, {:.1f} s expected\n", layout.name,
                   prompt_tokens, requests, each.pipeline_stage, each.manifest.kernels.size(), seconds);
        EXPECT_LT(each.manifest.kernels.size(), 100U);
      }
    }
}

TEST(KernelManifest, EntriesCanBeToldApart) {
  for (const testing::ManifestLayout& layout : testing::manifest_layouts()) {
    ManifestQuestion question{.parallel = layout.parallel, .device = *cuda::find_device("h200")};
    const jit::KernelManifest merged = merge_manifests(*kernels_of_ranks(layout.config, question));
    std::set<std::string> names;
    for (const jit::ManifestEntry& entry : merged.kernels) {
      EXPECT_TRUE(names.insert(entry.source.name).second) << entry.source.name << " names two kernels";
      EXPECT_FALSE(validate(entry.source).has_error()) << entry.source.name;
      EXPECT_FALSE(entry.calls.empty()) << entry.source.name;
      EXPECT_GT(entry.compile_seconds, 0) << entry.source.name;
    }
    EXPECT_EQ(keys_of(merged).size(), merged.kernels.size());
    EXPECT_TRUE(std::ranges::is_sorted(merged.kernels, {}, [](const auto& entry) { return entry.source.name; }));
  }
}

TEST(KernelManifest, SaysForWhichArchitecturesThereAreKernels) {
  const auto refused = kernel_manifest({}, *cuda::find_device("h200"), "sm_80");
  ASSERT_TRUE(refused.has_error());
  EXPECT_EQ(refused.error().kind, ErrorKind::kUnsupported);
  EXPECT_THAT(refused.error().message, HasSubstr("no kernels for 'sm_80'; there are for: sm_90a"));
}

}  // namespace
}  // namespace plait
