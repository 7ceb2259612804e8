// Every valid configuration gives the single rank's answers, bit for bit, and the check can fail.
#include <map>
#include <set>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "layout/planner.h"
#include "tests/layout/simulator.h"
#include "tests/topology/configurations.h"
#include "topology/topology.h"

namespace plait::test {
namespace {

using Logits = std::vector<std::array<Word, kVocabulary>>;

// Of a data-parallel rank's batch; alike for every configuration, so computed once.
class Oracle {
 public:
  const Batch& batch(int rows, int dp, bool many_logits) { return entry(rows, dp, many_logits).first; }
  const Logits& logits(const ModelFacts& facts, int rows, int dp, bool many_logits) {
    auto [found, is_new] = logits_.try_emplace({facts.layers, facts.q_lora_rank, rows, dp, many_logits});
    if (is_new) found->second = plain_logits(facts, batch(rows, dp, many_logits));
    return found->second;
  }

 private:
  std::pair<Batch, int>& entry(int rows, int dp, bool many_logits) {
    auto [found, is_new] = batches_.try_emplace({rows, dp, many_logits});
    if (is_new) found->second = {make_batch(rows, dp, many_logits), 0};
    return found->second;
  }

  std::map<std::tuple<int, int, bool>, std::pair<Batch, int>> batches_;
  std::map<std::tuple<int64_t, int64_t, int, int, bool>, Logits> logits_;
};

Oracle& oracle() {
  static Oracle instance;
  return instance;
}

struct Load {
  std::vector<Batch> batches;  // [dp]
  std::vector<Logits> expected;
};

Load make_load(const ModelFacts& facts, const std::vector<int>& rows, bool many_logits) {
  Load load;
  for (size_t dp = 0; dp < rows.size(); ++dp) {
    load.batches.push_back(oracle().batch(rows[dp], static_cast<int>(dp), many_logits));
    load.expected.push_back(oracle().logits(facts, rows[dp], static_cast<int>(dp), many_logits));
  }
  return load;
}

// Rows of each data-parallel rank: alike for all, and unequal, with idle ranks.
std::vector<std::vector<int>> loads(const ParallelConfig& config) {
  const int cp = config.attn_cp_size, dp = config.attn_dp_size();
  std::vector<int> counts = {0, 1, cp - 1, cp, cp + 1, 7, 97};
  std::sort(counts.begin(), counts.end());
  counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
  std::vector<std::vector<int>> all;
  for (const int count : counts) all.push_back(std::vector<int>(dp, count));
  if (dp == 1) return all;
  std::vector<int> rising(dp), one(dp, 0), mixed(dp);
  for (int i = 0; i < dp; ++i) {
    rising[i] = i;
    mixed[i] = i % 2 == 0 ? 7 + i : 0;
  }
  one[dp / 2] = 97;
  all.insert(all.end(), {rising, one, mixed});
  return all;
}

// Steps that are planned: with and without context parallelism, as small and as large as makes the planner choose
// differently.
std::vector<StepForm> forms(const ParallelConfig& config) {
  std::vector<StepForm> all;
  for (const bool context : {false, true})
    for (const int64_t tokens : {4, 8192})
      if (!context || config.attn_cp_size > 1)
        all.push_back({.context_parallel = context, .tokens = tokens, .logit_rows = tokens > 1000 ? 4 : tokens});
  return all;
}

// Where all have equally many rows, the two are one.
std::vector<PaddingMode> padding_modes(const std::vector<int>& rows) {
  if (std::equal(rows.begin() + 1, rows.end(), rows.begin())) return {PaddingMode::kMaxLen};
  return {PaddingMode::kMaxLen, PaddingMode::kSumLen};
}

std::string name(const ParallelConfig& config, const StepForm& form) {
  return fmt::format("{}; {} tokens, context parallel {}", to_flags(config), form.tokens, form.context_parallel);
}

struct Tally {
  int64_t configurations = 0, plans = 0, distinct_plans = 0, runs = 0;
};

// Everything that a run depends on besides the configuration's sizes.
std::string fingerprint(const Plan& plan) {
  std::string text = fmt::format("{} {}:", plan.form.context_parallel, plan.divided.bits());
  for (const Segment& segment : plan.segments) {
    text += "/";
    for (const PlanStep& step : segment.steps) {
      if (const auto* collective = std::get_if<Collective>(&step))
        text += fmt::format("{}{}{} ", static_cast<int>(collective->kind), static_cast<int>(collective->payload),
                            collective->axes.bits());
      else
        text += std::holds_alternative<StageStep>(step) ? "S" : "F";
    }
  }
  for (const ScheduledSegment& at : plan.order) text += fmt::format(" {}", at.segment);
  return text;
}

void check_plan(const Plan& plan, Tally& tally) {
  ++tally.distinct_plans;
  for (const std::vector<int>& rows : loads(plan.config)) {
    const Load load = make_load(plan.facts, rows, false);
    for (const PaddingMode mode : padding_modes(rows)) {
      ++tally.runs;
      const auto problem = Simulator(plan, load.batches, mode).run(load.expected);
      ASSERT_FALSE(problem.has_value()) << *problem << " (" << name_of(mode) << ", first rank has " << rows[0]
                                        << " rows)";
    }
  }
}

// Under the sanitizers, which slow it down several times, fewer ranks exercise the same code.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kMostRanks = 4, kMostSabotagedRanks = 2;
#else
constexpr int kMostRanks = 8, kMostSabotagedRanks = 4;
#endif

TEST(Exactness, EveryConfigurationEqualsOneRank) {
  Tally tally;
  std::array<int64_t, 9> by_world{};
  for (ParallelConfig config : valid_configurations(kMostRanks)) {
    std::set<std::string> seen;
    // Models whose queries come from the hidden state, and from a projection that may run on scattered rows.
    const bool low_rank = (tally.configurations / 2) % 3 != 0;
    const ModelFacts facts = toy_facts(std::max(4, config.pp_size), low_rank);
    for (const bool fusion : {false, true}) {
      config.enable_allreduce_fusion = fusion;
      ++tally.configurations;
      ++by_world[config.world_size()];
      for (const StepForm& form : forms(config)) {
        SCOPED_TRACE(name(config, form));
        const auto plan = make_plan(Topology(config), facts, form);
        ASSERT_TRUE(plan.has_value()) << plan.error().message;
        ++tally.plans;
        if (!seen.insert(fingerprint(*plan)).second) continue;
        check_plan(*plan, tally);
        if (HasFatalFailure()) return;
      }
    }
  }
  fmt::print("{} configurations (with and without fusion), {} plans, of which {} differ, {} runs against one rank\n",
             tally.configurations, tally.plans, tally.distinct_plans, tally.runs);
  for (int world = 1; world <= kMostRanks; ++world) fmt::print("  {} ranks: {}\n", world, by_world[world]);
}

bool is_sum(CollectiveKind kind) {
  return kind == CollectiveKind::kAllReduce || kind == CollectiveKind::kReduceScatter;
}

// Leaves out, and sums twice, each collective of a plan in turn.
void check_sabotage(const Plan& plan, Tally& tally, int& unnoticed) {
  std::vector<int> rows(plan.config.attn_dp_size());
  for (size_t dp = 0; dp < rows.size(); ++dp) rows[dp] = 19 + static_cast<int>(dp);
  const Load load = make_load(plan.facts, rows, true);
  Simulator sound(plan, load.batches, PaddingMode::kSumLen);
  ASSERT_FALSE(sound.run(load.expected).has_value());
  for (int nth = 0; nth < sound.collectives(); ++nth)
    for (const auto kind : {Sabotage::Kind::kSkip, Sabotage::Kind::kDouble}) {
      if (kind == Sabotage::Kind::kDouble && !is_sum(sound.kinds()[nth])) continue;
      ++tally.runs;
      Simulator broken(plan, load.batches, PaddingMode::kSumLen, {kind, nth});
      if (broken.run(load.expected).has_value()) continue;
      ++unnoticed;
      ADD_FAILURE() << "collective " << nth << " of " << sound.collectives() << " (" << name_of(sound.kinds()[nth])
                    << ") can be " << (kind == Sabotage::Kind::kSkip ? "left out" : "doubled");
    }
}

TEST(Exactness, EveryCollectiveMatters) {
  Tally tally;
  int unnoticed = 0;
  for (ParallelConfig config : valid_configurations(kMostSabotagedRanks))
    for (const bool fusion : {false, true}) {
      config.enable_allreduce_fusion = fusion;
      for (const StepForm& form : forms(config)) {
        SCOPED_TRACE(name(config, form));
        const auto plan = make_plan(Topology(config), toy_facts(4, true), form);
        ASSERT_TRUE(plan.has_value()) << plan.error().message;
        ++tally.plans;
        check_sabotage(*plan, tally, unnoticed);
        if (HasFatalFailure() || unnoticed > 5) return;
      }
    }
  fmt::print("{} plans, {} faults, all noticed\n", tally.plans, tally.runs);
}

}  // namespace
}  // namespace plait::test
