// Every valid configuration of up to 8 thread ranks gives one rank's answers, bit for bit: see docs/parallel.md.
#include <atomic>
#include <chrono>
#include <set>
#include <sys/mman.h>
#include <sys/wait.h>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include "layout/planner.h"
#include "model/model_facts.h"
#include "tests/engine/exact_run.h"
#include "tests/kernels/exact_operations.h"
#include "tests/model/random_checkpoint.h"
#include "tests/support/effort.h"
#include "tests/topology/configurations.h"
#include "topology/rules.h"

namespace plait::testing {
namespace {

constexpr int kMostRanks = 8;
constexpr ExactFamily kFamilies[] = {ExactFamily::kV2Lite, ExactFamily::kV3};

// All parallel flags that place rows, weights or KV pages, and both forms of the expert exchange; fusion is not among
// them.
std::vector<ParallelConfig> all_configurations() {
  std::vector<ParallelConfig> all;
  for (const ParallelConfig& config : plait::test::valid_configurations(kMostRanks)) {
    std::vector<DeepepMode> modes = {DeepepMode::kAuto};
    if (config.moe_a2a_backend != MoeA2a::kNone) modes = {DeepepMode::kNormal, DeepepMode::kLowLatency};
    for (const DeepepMode mode : modes) {
      all.push_back(config);
      all.back().deepep_mode = mode;
      if (config.attn_cp_size == 1) continue;
      all.push_back(all.back());
      all.back().prefill_cp_kv_sharded = true;
    }
  }
  return all;
}

// Under a sanitizer a part of them, spread evenly.
std::vector<ParallelConfig> configurations_to_run() {
  const std::vector<ParallelConfig> all = all_configurations();
  const int64_t count = kSanitized ? 64 : std::ssize(all);
  std::vector<ParallelConfig> some;
  for (int64_t i = 0; i < count; ++i) some.push_back(all[i * std::ssize(all) / count]);
  return some;
}

// How a configuration is run. Plans that save calls are what the planner finds for models as small as these; where
// calls are free it finds those that save bytes, as for large models.
struct Variant {
  ExactFamily family;
  bool calls_are_free;
  PaddingMode padding;
};

// Both padding modes, which are one where there is one data-parallel rank. Families and plans take turns.
std::vector<Variant> variants_of(const ParallelConfig& parallel, int64_t number) {
  const uint64_t turn = static_cast<uint64_t>(number) * 0x9e3779b97f4a7c15u >> 62;  // neighbours differ in one flag
  const auto family = static_cast<ExactFamily>(turn % 2), other = static_cast<ExactFamily>(1 - turn % 2);
  const bool free = turn >= 2;
  std::vector<Variant> variants = {{family, free, PaddingMode::kMaxLen}};
  if (parallel.attn_dp_size() > 1) variants.push_back({other, !free, PaddingMode::kSumLen});
  return variants;
}

// Shared by the processes that count.
struct Tally {
  std::atomic<size_t> next = 0;  // configuration to be run
  std::atomic<int64_t> configurations = 0, never_fused = 0, runs = 0, fused_runs = 0, steps = 0, logit_rows = 0;
  std::atomic<int64_t> problems = 0;
  std::array<std::atomic<int64_t>, kMostRanks + 1> by_world{};
};

bool has_fused_step(Plan plan) {
  for (Segment& segment : plan.segments) {
    fuse_all_reduces(segment.steps);
    for (const PlanStep& step : segment.steps)
      if (std::holds_alternative<FusedAllReduceAddNorm>(step)) return true;
  }
  return false;
}

// Runs configurations one after another, with and without fusion.
class Worker {
 public:
  explicit Worker(Tally& tally) : tally_(tally) {}

  // The first difference from one rank, or nothing.
  std::optional<std::string> check(ParallelConfig parallel, int64_t number) {
    bool ever_fused = false;
    for (const Variant& variant : variants_of(parallel, number)) {
      bool can_fuse = false;
      for (const bool fusion : {false, true}) {
        if (fusion && !can_fuse) continue;  // the very same plan
        parallel.enable_allreduce_fusion = fusion;
        tally_.fused_runs += fusion;
        ever_fused |= fusion;
        if (auto problem = run(parallel, variant, number, can_fuse)) return problem;
      }
    }
    tally_.configurations += 2;
    tally_.by_world[parallel.world_size()] += 2;
    tally_.never_fused += !ever_fused;
    return std::nullopt;
  }

 private:
  std::optional<std::string> run(const ParallelConfig& parallel, const Variant& variant, int64_t number,
                                 bool& can_fuse) {
    const ExactModel& model = exact_model(variant.family, parallel);
    const ModelFacts facts = model_facts(model.config);
    const ParallelVerdict verdict = judge(parallel, &facts);
    if (!verdict.accepted() || verdict.config != parallel) return to_flags(parallel) + ": not valid for the model";
    auto& shards = shards_[&model];
    if (!shards) shards = std::make_unique<ShardCache>(model.config, model.weights);
    const auto replan = [&](Plan plan) {
      if (variant.calls_are_free)
        plan = make_plan(Topology(parallel), plan.facts, plan.form, {.costs = {.call_s = 0, .round_s = 0}}).value();
      can_fuse |= has_fused_step(plan);
      return plan;
    };
    const ExactOutcome outcome = run_exact(
        {.model = &model, .parallel = parallel, .padding = variant.padding, .number = number, .replan = replan},
        *shards);
    ++tally_.runs;
    tally_.steps += outcome.steps;
    tally_.logit_rows += outcome.logit_rows;
    if (outcome.error.empty() && outcome.difference.empty()) return std::nullopt;
    return fmt::format("{}, {}, {}, {}: {}{}", to_flags(parallel), name_of(parallel.deepep_mode),
                       name_of(variant.padding), variant.family == ExactFamily::kV3 ? "V3" : "V2-Lite", outcome.error,
                       outcome.difference);
  }

  Tally& tally_;
  std::map<const ExactModel*, std::unique_ptr<ShardCache>> shards_;
};

// Forks a child for each core, which stays there with the ranks that it starts: to wake a thread of the same core costs
// a tenth of waking another core. Processes, because threads would interrupt each other whenever one of them returns
// memory to the system.
void on_each_core(const std::function<void()>& work) {
  cpu_set_t usable;
  ASSERT_EQ(sched_getaffinity(0, sizeof usable, &usable), 0);
  std::vector<pid_t> children;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &usable)) continue;
    std::fflush(nullptr);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      cpu_set_t own;
      CPU_ZERO(&own);
      CPU_SET(core, &own);
      sched_setaffinity(0, sizeof own, &own);
      work();
      std::fflush(nullptr);
      _exit(0);
    }
    children.push_back(child);
  }
  for (const pid_t child : children) {
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0) << "a process that compares ended like this";
  }
}

class ExactRanks : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { install_exact_operations(); }
};

TEST_F(ExactRanks, EveryConfigurationEqualsOneRank) {
  const auto begin = std::chrono::steady_clock::now();
  const std::vector<ParallelConfig> all = configurations_to_run();
  for (const ParallelConfig& parallel : all)
    for (const ExactFamily family : kFamilies) exact_model(family, parallel);  // before there are several processes

  void* shared = mmap(nullptr, sizeof(Tally), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(shared, MAP_FAILED);
  Tally& tally = *new (shared) Tally;
  on_each_core([&] {
    auto* worker = new Worker(tally);  // its models end with the process
    for (size_t i = tally.next++; i < all.size(); i = tally.next++)
      if (const auto problem = worker->check(all[i], static_cast<int64_t>(i)); problem && ++tally.problems <= 10)
        fmt::print("{}\n", *problem);
  });
  EXPECT_EQ(tally.problems, 0);
  EXPECT_EQ(tally.configurations, 2 * std::ssize(all));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  fmt::print(
      "{} configurations (with and without fusion; {} have nothing to fuse), {} runs of {} steps (fused: {} runs), {} "
      "rows of logits equal to one rank's, {:.0f} s\n",
      tally.configurations.load(), tally.never_fused.load(), tally.runs.load(), tally.steps.load(),
      tally.fused_runs.load(), tally.logit_rows.load(), seconds);
  for (int world = 1; world <= kMostRanks; ++world) fmt::print("  {} ranks: {}\n", world, tally.by_world[world].load());
  munmap(shared, sizeof(Tally));
}

// -- What the comparison rests on --

constexpr size_t kAuditedSequences = kSanitized ? 4 : 11;  // eleven: a prompt of every length

TEST_F(ExactRanks, FloatHoldsEverySumOfOneRank) {
  std::set<const ExactModel*> models;
  for (const ParallelConfig& parallel : configurations_to_run())
    for (const ExactFamily family : kFamilies) models.insert(&exact_model(family, parallel));
  int64_t sums = 0;
  int bits = 0;
  std::string widest;
  for (const ExactModel* model : models) {
    const ExactnessAudit audit;
    const std::vector<std::vector<float>> logits = model->one_rank(kAuditedSequences);
    EXPECT_EQ(audit.findings().problem, "");
    for (size_t i = 0; i < logits.size(); ++i) ASSERT_EQ(logits[i], model->sequences[i].logits);
    sums += audit.findings().sums;
    if (audit.findings().bits <= bits) continue;
    bits = audit.findings().bits;
    widest = audit.findings().widest;
  }
  EXPECT_LE(bits, 24);
  fmt::print("{} models, {} sums that ranks may divide; the widest ({}) needs {} of float32's 24 bits\n", models.size(),
             sums, widest, bits);
}

TEST_F(ExactRanks, AuditNoticesSumsThatRound) {
  ExactModel model = exact_model(ExactFamily::kV3, {});
  model.weights = random_checkpoint(model.config, {}, /*seed=*/5);
  const ExactnessAudit audit;
  model.one_rank(1);
  EXPECT_NE(audit.findings().problem, "");
  EXPECT_GT(audit.findings().bits, 24);
}

// Logits that hardly differ between positions would be equal whatever ranks do.
TEST_F(ExactRanks, AnswersDiffer) {
  for (const ExactFamily family : kFamilies) {
    const ExactModel& model = exact_model(family, {});
    std::set<std::vector<float>> distinct;
    int64_t rows = 0;
    for (int i = 0; i < std::ssize(model.sequences); ++i)
      for (int64_t position = 0; position < model.sequences[i].length(); ++position, ++rows) {
        const std::span<const float> logits = model.expected(i, position);
        EXPECT_TRUE(std::all_of(logits.begin(), logits.end(), [](float logit) { return std::isfinite(logit); }));
        distinct.emplace(logits.begin(), logits.end());
      }
    // First tokens see nothing but themselves, so that equal ones have equal answers.
    EXPECT_GT(std::ssize(distinct), rows * 9 / 10);
  }
}

}  // namespace
}  // namespace plait::testing
