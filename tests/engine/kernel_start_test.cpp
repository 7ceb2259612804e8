// Start-up with a model's own kernels: what engine/kernel_manifest says, compiled by NVRTC through cache and farm, as
// ranks on a GPU would have it. Nobody runs them. Where there is no libnvrtc these tests are skipped, or fail if
// PLAIT_REQUIRE_NVRTC is set, as scripts/test does.
#include <cstdlib>
#include <map>
#include <set>
#include <span>
#include <sys/stat.h>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/environment.h"
#include "checkpoint/checkpoint.h"
#include "engine/engine.h"
#include "engine/kernel_build.h"
#include "engine/kernel_manifest.h"
#include "engine/start_records.h"
#include "jit/nvrtc.h"
#include "tests/jit/folder.h"
#include "tests/support/effort.h"

namespace plait {
namespace {

using ::testing::HasSubstr;

const std::string kModel = std::string(PLAIT_SOURCE_DIR) + "/models/demo-fp8";
constexpr int64_t kRequests = 2, kPromptTokens = 16;

class Heard : public StartListener {
 public:
  void met(const std::shared_ptr<comm::World>&) override {}
  void moved(const std::vector<StartRecord>& of_all_hosts) override { records = of_all_hosts; }
  std::vector<StartRecord> records;
};

struct Layout {
  const char* name;
  ParallelConfig parallel;
};
const Layout kLayouts[] = {
    {"one rank", {}},
    {"two stages", {.pp_size = 2}},
    {"experts over two ranks",
     {.tp_size = 2, .dp_size = 2, .enable_dp_attention = true, .ep_size = 2, .moe_a2a_backend = MoeA2a::kAllToAll}},
};
constexpr DisaggregationMode kRoles[] = {DisaggregationMode::kNull, DisaggregationMode::kPrefill,
                                         DisaggregationMode::kDecode};

class KernelStart : public ::testing::Test {
 protected:
  void SetUp() override {
    auto compiler = jit::load_nvrtc();
    if (compiler.has_error()) {
      ASSERT_EQ(std::getenv("PLAIT_REQUIRE_NVRTC"), nullptr) << compiler.error().message;
      GTEST_SKIP() << "SKIPPED: " << compiler.error().message;
    }
    compiler_ = (*compiler)->identity();
    ::setenv("PLAIT_REHEARSE_KERNELS", "h200", 1);
  }
  void TearDown() override {
    ::unsetenv("PLAIT_REHEARSE_KERNELS");
    ::unsetenv("PLAIT_REHEARSE_DELAY");
  }

  EngineOptions options(const Layout& layout, DisaggregationMode role) const {
    EngineOptions options;
    options.model_path = kModel;
    options.threads = 2;
    options.max_total_tokens = 1024;
    options.max_running_requests = kRequests;
    options.chunked_prefill_tokens = kPromptTokens;
    options.disaggregation = role;
    options.kernel_cache_dir = directory();
    options.parallel = layout.parallel;
    return options;
  }
  std::string directory() const { return (folder_.path() / "kernels").string(); }

  // Starts an engine and ends it. The record of its kernels.
  StartRecord start(const EngineOptions& options) {
    Heard heard;
    const auto engine = Engine::create(options, &heard);
    EXPECT_TRUE(engine.has_value()) << engine.error().message;
    if (engine.has_error()) return {};
    EXPECT_EQ((*engine)->compiles_after_ready(), 0u);
    for (const StartRecord& record : heard.records)
      if (record.phase == StartPhase::kKernels) return record;
    ADD_FAILURE() << "no record of kernels";
    return {};
  }

  // The kernels that the ranks of a layout can call, told without what start-up asks for them with.
  static std::vector<jit::KernelSource> planned(const Layout& layout, DisaggregationMode role) {
    const ModelConfig config = *read_model_config(kModel, {});
    const ManifestQuestion question{
        .parallel = layout.parallel,
        .limits = {.max_running_requests = kRequests, .chunked_prefill_tokens = kPromptTokens, .mode = role},
        .device = *cuda::find_device("h200")};
    std::vector<jit::KernelSource> sources;
    const auto ranks = kernels_of_ranks(config, question);
    EXPECT_TRUE(ranks.has_value()) << ranks.error().message;
    for (const jit::ManifestEntry& entry : merge_manifests(*ranks).kernels) sources.push_back(entry.source);
    return sources;
  }

  // Entries of the directory and the files that they are; another file means that it was written again.
  std::map<std::string, ino_t> entries() const {
    std::map<std::string, ino_t> entries;
    for (const std::string& name : jit::names_in(directory(), ".kernel")) {
      struct stat found {};
      EXPECT_EQ(::stat((directory() + "/" + name).c_str(), &found), 0);
      entries[name] = found.st_ino;
    }
    return entries;
  }

  jit::Folder folder_;
  jit::CompilerIdentity compiler_;
};

TEST_F(KernelStart, BuildsExactlyThePlannedKernelsOnce) {
  const std::pair<const Layout&, DisaggregationMode> cases[] = {{kLayouts[1], DisaggregationMode::kNull},
                                                                {kLayouts[2], DisaggregationMode::kPrefill},
                                                                {kLayouts[2], DisaggregationMode::kDecode},
                                                                {kLayouts[0], DisaggregationMode::kNull}};
  size_t built = 0, starts = 0;
  for (const auto& [layout, role] : std::span(cases).first(kSanitized ? 2 : std::size(cases))) {
    SCOPED_TRACE(fmt::format("{}, {}", layout.name, name_of(role)));
    std::filesystem::remove_all(directory());
    ::unsetenv("PLAIT_REHEARSE_DELAY");
    const std::vector<jit::KernelSource> expected = planned(layout, role);

    const StartRecord cold = start(options(layout, role));
    ASSERT_EQ(cold.done, expected.size());
    EXPECT_EQ(cold.total, expected.size());
    const auto there = entries();
    EXPECT_EQ(there.size(), expected.size()) << "something else was built";
    jit::KernelCache cache({.directory = directory()});
    for (const jit::KernelSource& source : expected)
      EXPECT_TRUE(cache.find(source, compiler_).has_value()) << source.name << " was not built";

    // A kernel that is compiled now takes minutes.
    ::setenv("PLAIT_REHEARSE_DELAY", "1000", 1);
    const StartRecord warm = start(options(layout, role));
    EXPECT_EQ(warm.done, expected.size());
    EXPECT_LT(warm.seconds, 10);
    EXPECT_EQ(entries(), there);
    built += there.size();
    starts += 2;
  }
  fmt::print("[tried] {} starts built {} kernels\n", starts, built);
}

TEST_F(KernelStart, ARoleLeavesTheOtherOnesKernelsOut) {
  for (const Layout& layout : kLayouts) {
    std::map<DisaggregationMode, std::set<std::string>> names;
    for (const DisaggregationMode role : kRoles) {
      const EngineOptions asked = options(layout, role);
      const ManifestOfRank manifests = *rehearsed_manifests({*read_model_config(kModel, {}), layout.parallel, asked});
      for (int rank = 0; rank < layout.parallel.tp_size * layout.parallel.pp_size; ++rank) {
        const auto manifest = manifests(rank);
        for (const jit::ManifestEntry& entry : manifest->kernels) names[role].insert(entry.source.name);
      }
    }
    SCOPED_TRACE(layout.name);
    const std::set<std::string>& all = names[DisaggregationMode::kNull];
    for (const DisaggregationMode role : {DisaggregationMode::kPrefill, DisaggregationMode::kDecode}) {
      EXPECT_FALSE(names[role].empty());
      EXPECT_LT(names[role].size(), all.size());
      EXPECT_TRUE(std::ranges::includes(all, names[role]));
    }
    EXPECT_NE(names[DisaggregationMode::kPrefill], names[DisaggregationMode::kDecode]);
  }
}

TEST_F(KernelStart, SaysWhichGpusAreKnown) {
  ::setenv("PLAIT_REHEARSE_KERNELS", "h2000", 1);
  const auto engine = Engine::create(options(kLayouts[0], DisaggregationMode::kNull));
  ASSERT_TRUE(engine.has_error());
  for (const char* said : {"PLAIT_REHEARSE_KERNELS", "'h2000'", "*.json", "h200, "})
    EXPECT_THAT(engine.error().message, HasSubstr(said));
}

}  // namespace
}  // namespace plait
