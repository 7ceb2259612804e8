// The goldens through teams of thread ranks, in many parallel configurations.
#include <algorithm>
#include <random>

#include <gtest/gtest.h>

#include "base/launch_region.h"
#include "engine/engine_setup.h"
#include "engine/rank_team.h"
#include "model/model_facts.h"
#include "tests/model/goldens.h"
#include "tests/model/model_runner.h"
#include "tests/support/effort.h"
#include "topology/rules.h"

namespace plait::testing {
namespace {

constexpr int64_t kPageTokens = 4;
// Of the logits' range, as for one rank: sums come in another order, nothing else differs.
constexpr double kTolerance = 2e-5;

// A team with weights, and sequences over its data-parallel ranks: sequence i lives on rank i % dp.
class Team {
 public:
  Team(const ModelConfig& config, const TensorSet& weights, const TeamOptions& options) : config_(config) {
    const Topology topology(options.parallel);
    std::vector<std::unique_ptr<Model>> models;
    for (int rank = 0; rank < topology.world(); ++rank) {
      ModelOptions own = options.model;
      own.shard = shard_of(topology, model_facts(config), rank);
      models.push_back(make_model(config, own).value());
    }
    auto created = RankTeam::create(config, options, std::move(models));
    if (created.has_error()) throw std::runtime_error(created.error().message);
    team_ = std::move(created).value();
    const Status loaded = weights.load(team_->weight_requests());
    if (loaded.has_error()) throw std::runtime_error(loaded.error().message);
    if (const Status finished = team_->finish_loading(); finished.has_error())
      throw std::runtime_error(finished.error().message);
    team_->allocate_kv(/*pages=*/256, kPageTokens, /*sequences=*/16);
    dp_ = options.parallel.attn_dp_size();
    free_pages_.assign(dp_, 0);
  }

  struct Sequence {
    int dp = 0;
    std::vector<int32_t> pages;
    int64_t cached = 0;
  };
  Sequence make(int index) const { return {.dp = index % dp_}; }

  // The next tokens of each sequence, in one step. Logits of all of them: [sequence][tokens, vocab].
  std::vector<std::vector<float>> append(std::span<Sequence*> sequences,
                                         const std::vector<std::vector<int32_t>>& tokens, int64_t expanded_until) {
    std::vector<StepBuilder> builders;
    for (int dp = 0; dp < dp_; ++dp) builders.emplace_back(steps_);
    ++steps_;
    for (size_t i = 0; i < sequences.size(); ++i) {
      Sequence& sequence = *sequences[i];
      const auto count = std::ssize(tokens[i]);
      while (std::ssize(sequence.pages) * kPageTokens < sequence.cached + count)
        sequence.pages.push_back(static_cast<int32_t>(free_pages_[sequence.dp]++ * 37 % 256));
      builders[sequence.dp].add(tokens[i], sequence.cached, sequence.pages, expanded_until, count);
      sequence.cached += count;
    }
    std::vector<Step> steps;
    for (StepBuilder& builder : builders) steps.push_back(std::move(builder).build());
    std::vector<std::vector<float>> of_dp(dp_);
    std::vector<const Step*> of_dp_ranks;
    for (const Step& step : steps) of_dp_ranks.push_back(&step);
    const Status status = team_->run(of_dp_ranks, [&](int dp, ThreadPool&, Rows logits) {
      for (int64_t i = 0; i < logits.rows; ++i)
        of_dp[dp].insert(of_dp[dp].end(), logits.row(i), logits.row(i) + logits.cols);
    });
    if (status.has_error()) throw std::runtime_error(status.error().message);
    std::vector<std::vector<float>> result;
    std::vector<size_t> taken(dp_, 0);
    for (size_t i = 0; i < sequences.size(); ++i) {
      const int dp = sequences[i]->dp;
      const size_t count = tokens[i].size() * config_.vocab_size;
      result.emplace_back(of_dp[dp].begin() + taken[dp], of_dp[dp].begin() + taken[dp] + count);
      taken[dp] += count;
    }
    return result;
  }

  const RankTeam& ranks() const { return *team_; }

  // Of all tokens so far: [tokens, layers with experts, k]
  std::vector<int32_t> routed_experts(const Sequence& sequence) const {
    const RoutedExpertPool& pool = *team_->routed_experts(sequence.dp);
    std::string rows;
    pool.read(sequence.pages, 0, sequence.cached, rows);
    EXPECT_EQ(std::ssize(rows), sequence.cached * pool.shape().row_bytes());
    std::vector<int32_t> ids;
    for (size_t i = 0; i < rows.size(); i += static_cast<size_t>(pool.shape().id_bytes)) {
      const auto byte = [&](size_t at) { return static_cast<int32_t>(static_cast<uint8_t>(rows[at])); };
      ids.push_back(pool.shape().id_bytes == 1 ? byte(i) : byte(i) + 256 * byte(i + 1));
    }
    return ids;
  }

 private:
  const ModelConfig& config_;
  std::unique_ptr<RankTeam> team_;
  int dp_ = 1;
  std::vector<int64_t> free_pages_;
  uint64_t steps_ = 0;
};

// Every configuration of 2 to 8 ranks that the rules accept as it is, in a fixed random order.
std::vector<ParallelConfig> configurations(const ModelFacts& facts) {
  // One number of each list, in all combinations.
  const std::vector<std::vector<int>> choices = {{1, 2, 4, 8}, {1, 2, 4}, {1, 2, 4}, {1, 2, 4, 8}, {1, 2}, {0, 1},
                                                 {0, 1},       {0, 1},    {0, 1},    {0, 1},       {0, 1}};
  size_t combinations = 1;
  for (const auto& choice : choices) combinations *= choice.size();
  std::vector<ParallelConfig> all;
  for (size_t index = 0; index < combinations; ++index) {
    std::vector<int> drawn;
    for (size_t rest = index; const auto& choice : choices) {
      drawn.push_back(choice[rest % choice.size()]);
      rest /= choice.size();
    }
    ParallelConfig config{.tp_size = drawn[0], .pp_size = drawn[4], .dp_size = drawn[1], .ep_size = drawn[3]};
    config.enable_dp_attention = config.dp_size > 1;
    config.attn_cp_size = drawn[2];
    config.enable_prefill_cp = config.attn_cp_size > 1;
    if (config.enable_prefill_cp) config.cp_strategy = drawn[8] ? CpStrategy::kZigzag : CpStrategy::kInterleave;
    if (drawn[5]) config.moe_dense_tp_size = 1;
    config.enable_dp_lm_head = drawn[6];
    config.enable_allreduce_fusion = drawn[7];
    if (drawn[9]) config.moe_a2a_backend = MoeA2a::kAllToAll;
    config.prefill_cp_kv_sharded = drawn[10];
    const bool said_twice =
        (config.enable_dp_lm_head && config.dp_size == 1) || ((drawn[8] || drawn[10]) && !config.enable_prefill_cp);
    if (said_twice || config.world_size() == 1 || config.world_size() > 8) continue;
    const ParallelVerdict verdict = judge(config, &facts);
    if (verdict.accepted() && verdict.config == config) all.push_back(config);
  }
  std::shuffle(all.begin(), all.end(), std::mt19937(7));
  return all;
}

// What every rank wrote into the pools of its data-parallel rank, against the golden choices. Returns how many rows.
int64_t expect_golden_experts(const GoldenFolder& golden, const GoldenPrompt& prompt, std::vector<int32_t> ids) {
  const RoutedExpertShape shape = RoutedExpertShape::of(golden.config);
  const int64_t k = shape.experts_per_token;
  const auto tokens = std::ssize(prompt.input_ids);
  EXPECT_EQ(shape.expert_layers.size(), prompt.routed.size());
  EXPECT_EQ(std::ssize(ids), tokens * shape.row_ids());
  for (int64_t token = 0; token < tokens; ++token)
    for (size_t i = 0; i < shape.expert_layers.size(); ++i) {
      const auto mine = ids.begin() + token * shape.row_ids() + static_cast<int64_t>(i) * k;
      std::sort(mine, mine + k);
      const std::vector<int32_t>& table = prompt.routed.at(shape.expert_layers[i]);
      std::vector<int32_t> expected(table.begin() + token * k, table.begin() + (token + 1) * k);
      std::sort(expected.begin(), expected.end());
      if (!std::equal(expected.begin(), expected.end(), mine)) {
        ADD_FAILURE() << "experts of token " << token << " in layer " << shape.expert_layers[i];
        return 0;
      }
    }
  return tokens * std::ssize(shape.expert_layers);
}

// Every golden prompt at once: a first part, the rest in uneven pieces, the last tokens one by one.
// Returns how many rows of routed experts were compared.
int64_t expect_golden(const GoldenFolder& golden, const ParallelConfig& parallel, PaddingMode padding) {
  Team team(golden.config, golden.weights,
            {.parallel = parallel,
             .model = {kernels::Implementation::kFast, kernels::Activation::kFloat32, {}},
             .threads = 1,
             .keep_routed_experts = true,
             .padding = padding});
  std::vector<Team::Sequence> sequences;
  std::vector<std::vector<float>> logits(golden.prompts.size());
  for (size_t i = 0; i < golden.prompts.size(); ++i) sequences.push_back(team.make(static_cast<int>(i)));
  constexpr size_t kPieces[] = {7, 16, 5, 3, 1, 1};
  for (size_t piece = 0;; ++piece) {
    std::vector<Team::Sequence*> present;
    std::vector<std::vector<int32_t>> tokens;
    std::vector<size_t> index;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const std::vector<int32_t>& ids = golden.prompts[i].input_ids;
      const auto cached = static_cast<size_t>(sequences[i].cached);
      if (cached == ids.size()) continue;
      // Other pieces for each, so that data-parallel ranks have unequal loads, sometimes none.
      const size_t count = std::min(kPieces[(piece + i) % std::size(kPieces)], ids.size() - cached);
      tokens.emplace_back(ids.begin() + static_cast<std::ptrdiff_t>(cached),
                          ids.begin() + static_cast<std::ptrdiff_t>(cached + count));
      present.push_back(&sequences[i]);
      index.push_back(i);
    }
    if (present.empty()) break;
    const auto rows = team.append(present, tokens, /*expanded_until=*/20);
    for (size_t i = 0; i < rows.size(); ++i)
      logits[index[i]].insert(logits[index[i]].end(), rows[i].begin(), rows[i].end());
  }
  int64_t expert_rows = 0;
  for (size_t i = 0; i < golden.prompts.size(); ++i) {
    const GoldenPrompt& prompt = golden.prompts[i];
    if (logits[i].size() < prompt.logits.size()) {
      ADD_FAILURE() << "prompt " << i << " has too few logits";
      return 0;
    }
    const size_t offset = logits[i].size() - prompt.logits.size();
    double worst = 0;
    for (size_t j = 0; j < prompt.logits.size(); ++j)
      worst = std::max(worst, static_cast<double>(std::abs(logits[i][offset + j] - prompt.logits[j])));
    EXPECT_LE(worst, kTolerance * prompt.range()) << "prompt " << i;
    expert_rows += expect_golden_experts(golden, prompt, team.routed_experts(sequences[i]));
  }
  return expert_rows;
}

TEST(Ranks, GoldensInManyConfigurations) {
  const auto of_each_model = static_cast<size_t>(repetitions(40));
  int cases = 0, context_parallel = 0, pipelines = 0, exchanges = 0;
  size_t valid = 0;
  int64_t expert_rows = 0;
  for (const std::string name : {"v2-lite", "v2", "v3", "kimi-k2"}) {
    const GoldenFolder golden = GoldenFolder::read(name);
    const std::vector<ParallelConfig> all = configurations(model_facts(golden.config));
    ASSERT_GT(all.size(), 100u);
    valid += all.size();
    for (size_t i = 0; i < of_each_model; ++i, ++cases) {
      const ParallelConfig& config = all[i];
      const PaddingMode padding = i % 2 == 0 ? PaddingMode::kMaxLen : PaddingMode::kSumLen;
      SCOPED_TRACE(::testing::Message() << name << ": " << to_flags(config) << ", " << name_of(padding));
      expert_rows += expect_golden(golden, config, padding);
      if (HasFailure()) return;
      context_parallel += config.attn_cp_size > 1;
      pipelines += config.pp_size > 1;
      exchanges += config.moe_a2a_backend != MoeA2a::kNone;
    }
  }
  std::printf(
      "%d configurations of ranks compared with goldens, %d of them context-parallel, %d pipelines, %d with expert "
      "exchange; %ld rows of routed experts kept as they were chosen; %zu valid\n",
      cases, context_parallel, pipelines, exchanges, expert_rows, valid);
  EXPECT_EQ(blocked_launches(), 0u) << "a rank waited inside the launch of a step, outside a collective";
}

// Every byte that the planner's costs count moves, and no other.
TEST(Ranks, MoveTheBytesThatThePlanAnnounces) {
  const GoldenFolder golden = GoldenFolder::read("v3");
  const std::vector<ParallelConfig> all = configurations(model_facts(golden.config));
  const auto cases = static_cast<size_t>(repetitions(60));
  int collectives = 0, sharded = 0;
  for (size_t i = 0; i < cases; ++i) {
    const ParallelConfig& config = all[i];
    SCOPED_TRACE(to_flags(config));
    Team team(golden.config, golden.weights,
              {.parallel = config,
               .model = {kernels::Implementation::kFast, kernels::Activation::kFloat32, {}},
               .threads = 1,
               .padding = PaddingMode::kMaxLen});
    std::vector<Team::Sequence> sequences;
    for (int dp = 0; dp < config.attn_dp_size(); ++dp) sequences.push_back(team.make(dp));
    std::vector<Team::Sequence*> present;
    for (Team::Sequence& sequence : sequences) present.push_back(&sequence);
    const std::vector<int32_t> ids(8, 3);
    // The second step has history, whose pages move where context ranks have a part of them each.
    team.append(present, std::vector<std::vector<int32_t>>(present.size(), ids), 16);
    const StepTraffic before = team.ranks().traffic();
    team.append(present, std::vector<std::vector<int32_t>>(present.size(), ids), 16);

    StepTraffic moved = team.ranks().traffic();
    for (const auto& [name, bytes] : before) moved[name] -= bytes;
    sharded += config.prefill_cp_kv_sharded;
    StepTraffic planned = planned_traffic(team.ranks().last_plan(), team.ranks().last_step());
    for (const auto& [name, bytes] : moved) {
      const auto plan = planned.extract(name);
      const std::string what = name.first + " of " + name.second;
      ASSERT_TRUE(!plan.empty() || bytes == 0) << what << " is not planned, and moves " << bytes << " bytes";
      if (plan.empty() || name.first == "all_to_all") continue;  // which depends on routing
      ++collectives;
      if (name.first != "all_reduce") {
        EXPECT_DOUBLE_EQ(bytes, plan.mapped()) << what;
        continue;
      }
      // One of a few kilobytes is summed whole by every rank, which is n / 2 times a ring's bytes and half its rounds.
      EXPECT_GE(bytes, plan.mapped()) << what;
      EXPECT_LE(bytes, plan.mapped() * config.tp_size / 2) << what;
    }
    for (const auto& [name, bytes] : planned)
      EXPECT_EQ(bytes, 0) << name.first << " of " << name.second << " is planned and moves nothing";
  }
  std::printf(
      "%d collectives of %zu configurations moved the bytes that their plans announce, %d with divided KV pages\n",
      collectives, cases, sharded);
}

}  // namespace
}  // namespace plait::testing
