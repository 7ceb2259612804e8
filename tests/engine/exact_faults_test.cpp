// The comparison of bits can fail: faults in plans and in what single ranks compute, each of which it has to notice.
#include <atomic>
#include <variant>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "layout/planner.h"
#include "tests/engine/borrowed_model.h"
#include "tests/engine/exact_run.h"
#include "tests/kernels/exact_operations.h"
#include "tests/support/effort.h"
#include "tests/topology/configurations.h"
#include "topology/rules.h"

namespace plait::testing {
namespace {

// -- Faults of a rank --

// Hooks into a rank's model; those that are absent change nothing.
struct RankFault {
  std::function<void(int rank, ModelShard& shard)> shard;   // which part it loads
  std::function<void(std::vector<int64_t>& own)> own_rows;  // that it attends for; empty: all
  std::function<void(Rows latents)> cache_rows;             // of all the step's rows
  std::function<void(const Routing& routing, int64_t pairs)> routing;
  std::function<void(std::vector<int64_t>& first_row, std::vector<int64_t>& row_count)> expert_rows;
  std::function<void(Rows y)> attention, dense, logits;
  std::function<NormPlace(NormPlace place)> norm;
  int additions = 1;             // of a delta to the residual
  bool poisons_padding = false;  // attention leaves NaN in rows that pad
};

class FaultyModel : public BorrowedModel {
 public:
  FaultyModel(std::unique_ptr<Model> model, const RankFault& fault)
      : BorrowedModel(*model), model_(std::move(model)), fault_(fault) {}

  void begin_step(const Step& step, std::span<const int64_t> own) override {
    own_.assign(own.begin(), own.end());
    find_padding(step);
    if (fault_.own_rows) fault_.own_rows(own_);
    model_->begin_step(step, own_);
  }
  void attention(const kernels::Context& context, int64_t layer, const KvMemory& kv, Rows projected,
                 const AllCacheRows& all_cache_rows, Rows y) override {
    std::vector<float> copy;
    AllCacheRows all = all_cache_rows;
    if (all_cache_rows && fault_.cache_rows)
      all = [&](ConstRows own) {
        const ConstRows sound = all_cache_rows(own);
        for (int64_t i = 0; i < sound.rows; ++i) copy.insert(copy.end(), sound.row(i), sound.row(i) + sound.cols);
        fault_.cache_rows(Rows(copy.data(), sound.rows, sound.cols));
        return ConstRows(copy.data(), sound.rows, sound.cols);
      };
    model_->attention(context, layer, kv, projected, all, y);
    if (fault_.attention) fault_.attention(y);
    if (fault_.poisons_padding)
      for (const int64_t row : padding_) std::fill_n(y.row(row), y.cols, std::numeric_limits<float>::quiet_NaN());
  }
  void add_norm(const kernels::Context& context, NormPlace place, int64_t layer, ConstRows delta, Rows residual,
                Rows y) override {
    if (fault_.norm) place = fault_.norm(place);
    for (int more = 1; more < fault_.additions; ++more)
      for (int64_t i = 0; i < delta.rows; ++i)
        for (int64_t j = 0; j < delta.cols; ++j) residual.row(i)[j] += delta.row(i)[j];
    model_->add_norm(context, place, layer, delta, residual, y);
  }
  void dense(const kernels::Context& context, int64_t layer, ConstRows x, Rows y) override {
    model_->dense(context, layer, x, y);
    if (fault_.dense) fault_.dense(y);
  }
  Routing route(const kernels::Context& context, int64_t layer, ConstRows x) override {
    const Routing routing = model_->route(context, layer, x);
    if (fault_.routing) fault_.routing(routing, x.rows * config().gate.experts_per_token);
    return routing;
  }
  void expert_rows(const kernels::Context& context, int64_t layer, ConstRows x, std::span<const int64_t> first_row,
                   std::span<const int64_t> row_count, Rows y) override {
    std::vector<int64_t> first(first_row.begin(), first_row.end()), count(row_count.begin(), row_count.end());
    if (fault_.expert_rows) fault_.expert_rows(first, count);
    model_->expert_rows(context, layer, x, first, count, y);
  }
  void logits(const kernels::Context& context, ConstRows x, Rows logits) override {
    model_->logits(context, x, logits);
    if (fault_.logits) fault_.logits(logits);
  }

 private:
  // Rows of the buffer that no sequence of the step has.
  void find_padding(const Step& step) {
    int64_t real = 0;
    for (const StepSequence& sequence : step.sequences) real += sequence.row_count;
    padding_.clear();
    for (int64_t row = 0; row < (own_.empty() ? step.rows() : std::ssize(own_)); ++row)
      if ((own_.empty() ? row : own_[row]) >= real) padding_.push_back(row);
    padded_rows += std::ssize(padding_);
  }

  const std::unique_ptr<Model> model_;
  const RankFault fault_;
  std::vector<int64_t> own_, padding_;

 public:
  static inline std::atomic<int64_t> padded_rows = 0;  // of all steps of all ranks
};

void swap_first_rows(Rows rows) {
  if (rows.rows > 1) std::swap_ranges(rows.row(0), rows.row(0) + rows.cols, rows.row(1));
}

RankFault same_part(ShardPart ModelShard::*part) {
  return {.shard = [part](int, ModelShard& shard) { (shard.*part).index = 0; }};
}
RankFault next_part(ShardPart ModelShard::*part) {
  return {.shard = [part](int, ModelShard& shard) {
    (shard.*part).index = ((shard.*part).index + 1) % (shard.*part).count;
  }};
}
RankFault whole(ShardPart ModelShard::*part) {
  return {.shard = [part](int, ModelShard& shard) { shard.*part = {}; }};
}

// -- Faults of a plan --

// False: the plan has nothing to spoil.
using PlanFault = std::function<bool(Plan& plan)>;

// The first collective of a kind.
bool spoil(Plan& plan, CollectiveKind kind, const std::function<void(std::vector<PlanStep>&, size_t at)>& fault) {
  for (Segment& segment : plan.segments)
    for (size_t at = 0; at < segment.steps.size(); ++at)
      if (const auto* collective = std::get_if<Collective>(&segment.steps[at]);
          collective && collective->kind == kind) {
        fault(segment.steps, at);
        return true;
      }
  return false;
}

Collective& collective_at(std::vector<PlanStep>& steps, size_t at) {
  return std::get<Collective>(steps[at]);
}

// A slice to the layout that rows are in already keeps them as they are.
bool leave_out_all_reduce(Plan& plan) {
  return spoil(plan, CollectiveKind::kAllReduce,
               [](auto& steps, size_t at) { collective_at(steps, at).kind = CollectiveKind::kSlice; });
}

bool sum_twice(Plan& plan) {
  return spoil(plan, CollectiveKind::kAllReduce, [](auto& steps, size_t at) {
    Collective first = collective_at(steps, at);
    first.after = first.before;
    steps.insert(steps.begin() + static_cast<std::ptrdiff_t>(at), first);
  });
}

bool keep_own_summand(Plan& plan) {
  return spoil(plan, CollectiveKind::kReduceScatter,
               [](auto& steps, size_t at) { collective_at(steps, at).kind = CollectiveKind::kSlice; });
}

// Ranks that differ along another axis of the same width.
bool sum_over_other_ranks(Plan& plan) {
  for (Segment& segment : plan.segments)
    for (PlanStep& step : segment.steps) {
      auto* collective = std::get_if<Collective>(&step);
      if (!collective || collective->kind != CollectiveKind::kAllReduce) continue;
      for (int index = 0; index < plan.axes.count(); ++index) {
        const AxisSet other = AxisSet::axis(index);
        if (collective->axes.meets(other) || plan.axes.width(other) != plan.axes.width(collective->axes)) continue;
        collective->axes = other;
        return true;
      }
    }
  return false;
}

// An all-reduce fused with a norm because of a flag, though the rows before it are complete and differ between ranks.
bool fuse_where_nothing_is_owed(Plan& plan) {
  for (Segment& segment : plan.segments)
    for (size_t at = 1; at < segment.steps.size(); ++at) {
      const auto* norm = std::get_if<StageStep>(&segment.steps[at]);
      auto* before = std::get_if<StageStep>(&segment.steps[at - 1]);
      if (!norm || norm->stage.kind != StageKind::kAddNorm || !norm->residual || !before) continue;
      const Placement sound = before->out;
      if (!sound.owed.empty() || sound.layout.sharded.empty()) continue;
      const AxisSet axes = sound.layout.sharded;
      before->out = {.layout = {{}, sound.layout.order}, .owed = axes};
      Collective sum{.kind = CollectiveKind::kAllReduce, .axes = axes, .before = before->out, .after = sound};
      segment.steps[at] = FusedAllReduceAddNorm{sum, *norm};
      return true;
    }
  return false;
}

// -- The table --

struct FaultCase {
  const char* name;
  const char* flags;  // which configuration
  ParallelConfig parallel;
  std::variant<PlanFault, RankFault> fault;
  bool calls_are_free = false;  // plans with reduce_scatter and all_gather
};

ParallelConfig tensor(int tp) {
  return {.tp_size = tp};
}
ParallelConfig data(int tp, int dp) {
  return {.tp_size = tp, .dp_size = dp, .enable_dp_attention = true};
}
ParallelConfig context(int tp, int cp, CpStrategy strategy) {
  ParallelConfig config{.tp_size = tp};
  config.attn_cp_size = cp;
  config.enable_prefill_cp = true;
  config.cp_strategy = strategy;
  return config;
}
ParallelConfig exchange(int tp, DeepepMode mode) {
  ParallelConfig config = data(tp, tp);
  config.ep_size = tp;
  config.moe_a2a_backend = MoeA2a::kAllToAll;
  config.deepep_mode = mode;
  return config;
}
ParallelConfig experts(int tp, int ep) {
  ParallelConfig config{.tp_size = tp};
  config.ep_size = ep;
  return config;
}

std::vector<FaultCase> fault_cases() {
  const auto interleave = CpStrategy::kInterleave, zigzag = CpStrategy::kZigzag;
  const auto double_weights = [](const Routing& routing, int64_t pairs) {
    for (int64_t i = 0; i < pairs; ++i) routing.weights[i] *= 2;
  };
  const auto first_expert_only = [](const Routing& routing, int64_t pairs) {
    if (pairs > 1) std::swap(routing.expert_ids[0], routing.expert_ids[1]);
  };
  const auto swap_experts = [](std::vector<int64_t>& first, std::vector<int64_t>& count) {
    std::swap(first[0], first[1]);
    std::swap(count[0], count[1]);
  };
  const auto rotate_own = [](std::vector<int64_t>& own) {
    if (!own.empty()) std::rotate(own.begin(), own.begin() + 1, own.end());
  };
  const auto one_place_early = [](Rows latents) {
    for (int64_t i = 1; i < latents.rows; ++i) std::copy_n(latents.row(i), latents.cols, latents.row(i - 1));
  };
  const auto forget_a_row = [](Rows latents) { std::fill_n(latents.row(latents.rows / 2), latents.cols, 0.0f); };
  // The last row of a padded batch is padding, which attention leaves zero.
  const auto padding_leaks = [](Rows y) {
    if (y.rows > 1) std::copy_n(y.row(y.rows - 1), y.cols, y.row(0));
  };
  const auto other_norm = [](NormPlace place) {
    return place == NormPlace::kFeedForward ? NormPlace::kAttention : place;
  };
  return {
      {"an all-reduce is left out", "tp 2", tensor(2), leave_out_all_reduce},
      {"a sum is made twice", "tp 2", tensor(2), sum_twice},
      {"a reduce-scatter keeps the own summand", "tp 4", tensor(4), keep_own_summand, true},
      {"a sum over other ranks", "tp 4 dp 2", data(4, 2), sum_over_other_ranks},
      {"a fused all-reduce where nothing is owed", "tp 2 dp 2", data(2, 2), fuse_where_nothing_is_owed},
      {"two ranks have the same heads", "tp 2", tensor(2), same_part(&ModelShard::heads)},
      {"two ranks have the same columns of dense layers", "tp 4", tensor(4), same_part(&ModelShard::dense_width)},
      {"dense layers are whole, but summed", "tp 2", tensor(2), whole(&ModelShard::dense_width)},
      {"two ranks have the same experts", "tp 4 ep 4", experts(4, 4), same_part(&ModelShard::experts)},
      {"ranks have each other's experts", "tp 2 dp 2 ep 2 a2a", exchange(2, DeepepMode::kNormal),
       next_part(&ModelShard::experts)},
      {"two ranks have the same columns of experts", "tp 4 ep 2", experts(4, 2), same_part(&ModelShard::expert_width)},
      {"the shared expert is counted twice", "tp 2", tensor(2), whole(&ModelShard::shared_width)},
      {"two ranks have the same part of the vocabulary", "tp 2", tensor(2), same_part(&ModelShard::embedding)},
      {"ranks have each other's columns of logits", "tp 2", tensor(2), next_part(&ModelShard::head)},
      {"router weights are applied twice", "tp 2 dp 2 ep 2 a2a", exchange(2, DeepepMode::kNormal),
       RankFault{.routing = double_weights}},
      {"a token's choices change places", "tp 4 ep 4", experts(4, 4), RankFault{.routing = first_expert_only}},
      {"two experts get each other's rows", "tp 2 dp 2 ep 2 a2a, low latency", exchange(2, DeepepMode::kLowLatency),
       RankFault{.expert_rows = swap_experts}},
      {"a context rank's rows are one place off", "tp 2 cp 2 interleave", context(2, 2, interleave),
       RankFault{.own_rows = rotate_own}},
      {"two gathered latents change places", "tp 4 cp 4 zigzag", context(4, 4, zigzag),
       RankFault{.cache_rows = swap_first_rows}},
      {"padding shifts gathered latents", "tp 4 cp 4 interleave", context(4, 4, interleave),
       RankFault{.cache_rows = one_place_early}},
      {"a gathered latent is missing", "tp 2 cp 2 zigzag", context(2, 2, zigzag),
       RankFault{.cache_rows = forget_a_row}},
      {"padding takes a row's place", "tp 4 dp 2", data(4, 2), RankFault{.attention = padding_leaks}},
      {"two rows change places", "tp 2 dp 2", data(2, 2), RankFault{.dense = swap_first_rows}},
      {"two rows of logits change places", "tp 2", tensor(2), RankFault{.logits = swap_first_rows}},
      {"a delta is added to the residual twice", "tp 2", tensor(2), RankFault{.additions = 2}},
      {"a norm has another's weights", "tp 2", tensor(2), RankFault{.norm = other_norm}},
  };
}

class ExactFaults : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { install_exact_operations(); }
};

// Every rank has the fault.
ExactOutcome run_fault(const FaultCase& fault_case, ExactFamily family, bool with_fault, bool& spoiled) {
  const ExactModel& model = exact_model(family, fault_case.parallel);
  ShardCache shards(model.config, model.weights);
  ExactCase exact_case{.model = &model, .parallel = fault_case.parallel, .padding = PaddingMode::kMaxLen};
  const auto* plan_fault = std::get_if<PlanFault>(&fault_case.fault);
  const auto* rank_fault = std::get_if<RankFault>(&fault_case.fault);
  exact_case.replan = [&](Plan plan) {
    if (fault_case.calls_are_free)
      plan = make_plan(Topology(fault_case.parallel), plan.facts, plan.form, {.costs = {.call_s = 0, .round_s = 0}})
                 .value();
    if (with_fault && plan_fault) spoiled |= (*plan_fault)(plan);
    return plan;
  };
  if (with_fault && rank_fault) {
    spoiled = true;
    exact_case.make_rank = [&](int rank, ModelShard shard) {
      if (rank_fault->shard) rank_fault->shard(rank, shard);
      return std::make_unique<FaultyModel>(shards.take(shard), *rank_fault);
    };
  }
  return run_exact(exact_case, shards);
}

TEST_F(ExactFaults, EachIsNoticed) {
  int64_t noticed = 0;
  const std::vector<FaultCase> cases = fault_cases();
  for (size_t i = 0; i < cases.size(); ++i)
    for (const ExactFamily family : {ExactFamily::kV2Lite, ExactFamily::kV3}) {
      // Under a sanitizer in one of them.
      if (kSanitized && (i % 2 == 0) != (family == ExactFamily::kV3)) continue;
      const FaultCase& fault_case = cases[i];
      SCOPED_TRACE(::testing::Message() << fault_case.name << " (" << fault_case.flags << ")");
      const ParallelVerdict verdict = judge(fault_case.parallel, nullptr);
      ASSERT_TRUE(verdict.accepted() && verdict.config == fault_case.parallel);
      bool spoiled = false;
      const ExactOutcome sound = run_fault(fault_case, family, false, spoiled);
      ASSERT_EQ(sound.difference + sound.error, "");
      const ExactOutcome faulty = run_fault(fault_case, family, true, spoiled);
      EXPECT_TRUE(spoiled) << "the plan has nothing to spoil";
      EXPECT_EQ(faulty.error, "");
      EXPECT_NE(faulty.difference, "");
      noticed += !faulty.difference.empty();
    }
  fmt::print("{} kinds of faults, each in {} models: {} noticed\n", cases.size(), kSanitized ? 1 : 2, noticed);
}

// What stands in padding rows after attention is nobody's business: NaN there spreads over the row's later layers, and
// reaches no other row.
TEST_F(ExactFaults, PaddingReachesNobody) {
  const std::vector<ParallelConfig> all = plait::test::valid_configurations(8);
  const int64_t count = repetitions(200);
  FaultyModel::padded_rows = 0;
  for (int64_t i = 0; i < count; ++i) {
    const ParallelConfig& parallel = all[i * std::ssize(all) / count];
    SCOPED_TRACE(to_flags(parallel));
    const ExactModel& model = exact_model(i % 2 == 0 ? ExactFamily::kV2Lite : ExactFamily::kV3, parallel);
    ShardCache shards(model.config, model.weights);
    ExactCase exact_case{.model = &model, .parallel = parallel, .number = i};
    exact_case.padding = i % 3 == 0 ? PaddingMode::kSumLen : PaddingMode::kMaxLen;
    exact_case.make_rank = [&](int, const ModelShard& shard) {
      return std::make_unique<FaultyModel>(shards.take(shard), RankFault{.poisons_padding = true});
    };
    const ExactOutcome outcome = run_exact(exact_case, shards);
    ASSERT_EQ(outcome.error + outcome.difference, "");
  }
  EXPECT_GT(FaultyModel::padded_rows, 100 * count);
  fmt::print("{} configurations with NaN in {} padding rows\n", count, FaultyModel::padded_rows.load());
}

}  // namespace
}  // namespace plait::testing
