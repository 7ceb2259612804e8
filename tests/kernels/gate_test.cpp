#include "kernels/gate.h"

#include <cstdio>
#include <numeric>
#include <set>

#include "tests/kernels/implementations.h"

namespace plait::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// The five kinds of gate: V2-Lite, V2, V3, Kimi-K2 (V3 without groups), V3 without normalisation.
GateConfig v2_lite(int32_t experts = 64) {
  return {GateScoring::kSoftmax, GateMethod::kGreedy, experts, 6, 1, 1, false, 1};
}
GateConfig v2(int32_t experts = 160) {
  return {GateScoring::kSoftmax, GateMethod::kGroupLimitedGreedy, experts, 6, 8, 3, false, 16};
}
GateConfig v3(int32_t experts = 256) {
  return {GateScoring::kSigmoid, GateMethod::kNoAuxTc, experts, 8, 8, 4, true, 2.5};
}
GateConfig kimi_k2(int32_t experts = 384) {
  return {GateScoring::kSigmoid, GateMethod::kNoAuxTc, experts, 8, 1, 1, true, 2.827f};
}
GateConfig v3_not_normalised() {
  GateConfig config = v3();
  config.normalise = false;
  return config;
}

struct Routing {
  std::vector<int32_t> ids;    // [tokens, experts_per_token]
  std::vector<float> weights;  // the same
};

Routing route(const Context& context, const GateConfig& config, const std::vector<float>& logits, const float* bias) {
  const auto tokens = std::ssize(logits) / config.experts;
  Routing routing{std::vector<int32_t>(tokens * config.experts_per_token, -77),
                  std::vector<float>(tokens * config.experts_per_token, kNaN)};
  choose_experts(context, config, ConstRows(logits.data(), tokens, config.experts), bias, routing.ids.data(),
                 routing.weights.data());
  return routing;
}

// The same from the definition, in double and with sorts.
struct Expected {
  std::vector<double> choice;
  std::vector<int32_t> ids;
  std::vector<double> weights;
  double margin;  // distance of the closest decision
};

std::vector<int32_t> order_of(const std::vector<double>& values) {
  std::vector<int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int32_t a, int32_t b) { return values[a] > values[b]; });
  return order;
}

Expected route_by_definition(const GateConfig& config, const float* logits, const float* bias) {
  Expected expected;
  expected.margin = kInfinity;
  std::vector<double> scores(logits, logits + config.experts);
  if (config.scoring == GateScoring::kSoftmax) {
    const double maximum = *std::ranges::max_element(scores);
    double sum = 0;
    for (double& score : scores) sum += score = std::exp(score - maximum);
    for (double& score : scores) score /= sum;
  } else {
    for (double& score : scores) score = 1 / (1 + std::exp(-score));
  }
  expected.choice = scores;
  for (int32_t e = 0; bias && e < config.experts; ++e) expected.choice[e] += bias[e];
  if (config.method != GateMethod::kGreedy && config.groups > 1) {
    const int32_t size = config.experts / config.groups;
    std::vector<double> group_scores;
    for (int32_t g = 0; g < config.groups; ++g) {
      std::vector<double> group(expected.choice.begin() + g * size, expected.choice.begin() + (g + 1) * size);
      std::ranges::sort(group, std::greater());
      group_scores.push_back(config.method == GateMethod::kNoAuxTc ? group[0] + group[1] : group[0]);
    }
    const std::vector<int32_t> order = order_of(group_scores);
    if (config.kept_groups < config.groups)
      expected.margin = group_scores[order[config.kept_groups - 1]] - group_scores[order[config.kept_groups]];
    for (int32_t rank = config.kept_groups; rank < config.groups; ++rank)
      for (int32_t e = 0; e < size; ++e) expected.choice[order[rank] * size + e] = -kInfinity;
  }
  expected.ids = order_of(expected.choice);
  for (int32_t slot = 0; slot < config.experts_per_token; ++slot) {
    const double distance = expected.choice[expected.ids[slot]] - expected.choice[expected.ids[slot + 1]];
    expected.margin = std::min(expected.margin, distance);
  }
  expected.ids.resize(config.experts_per_token);
  double sum = 0;
  for (const int32_t id : expected.ids) sum += scores[id];
  for (const int32_t id : expected.ids)
    expected.weights.push_back(scores[id] / (config.normalise ? sum + 1e-20 : 1) * config.scaling_factor);
  return expected;
}

void expect_valid_ids(const GateConfig& config, const Routing& routing) {
  for (size_t first = 0; first < routing.ids.size(); first += config.experts_per_token) {
    const std::set<int32_t> ids(routing.ids.begin() + first, routing.ids.begin() + first + config.experts_per_token);
    EXPECT_EQ(std::ssize(ids), config.experts_per_token) << "an expert twice";
    EXPECT_GE(*ids.begin(), 0);
    EXPECT_LT(*ids.rbegin(), config.experts);
  }
}

PLAIT_TEST_BOTH_IMPLEMENTATIONS(Gate);

TEST_P(Gate, FiveKindsAgainstTheDefinition) {
  TestContext context(GetParam(), 2);
  int64_t compared = 0, too_close = 0;
  uint32_t seed = 1;
  for (const GateConfig& config : {v2_lite(), v2(), v3(), kimi_k2(), v3_not_normalised(), v3(16), v2(24), kimi_k2(9)}) {
    const int64_t tokens = 200;
    const bool biased = config.method == GateMethod::kNoAuxTc;
    const std::vector<float> logits = random_values(tokens * config.experts, seed++, 2);
    const std::vector<float> bias = random_values(config.experts, seed++, 0.5f);
    const Routing routing = route(context, config, logits, biased ? bias.data() : nullptr);
    for (int64_t t = 0; t < tokens; ++t) {
      const Expected expected =
          route_by_definition(config, logits.data() + t * config.experts, biased ? bias.data() : nullptr);
      if (expected.margin < 1e-6) {
        ++too_close;
        continue;
      }
      for (int32_t slot = 0; slot < config.experts_per_token; ++slot, ++compared) {
        const int64_t at = t * config.experts_per_token + slot;
        ASSERT_EQ(routing.ids[at], expected.ids[slot]) << "token " << t << " slot " << slot;
        ASSERT_NEAR(routing.weights[at], expected.weights[slot], 1e-6 * expected.weights[slot] + 1e-30);
      }
    }
  }
  std::printf("%ld choices compared, %ld tokens left out because a decision is closer than 1e-6\n", compared,
              too_close);
  EXPECT_GT(compared, 9000);
}

// A bias that makes every choice score negative: a mask of zero would let the dropped groups win.
TEST_P(Gate, MaskedGroupsLoseEvenToNegativeScores) {
  TestContext context(GetParam());
  GateConfig config = v3(8);
  config.groups = 4;
  config.kept_groups = 1;
  config.experts_per_token = 2;
  const std::vector<float> logits(8, 0.0f);
  const std::vector<float> bias = {-9, -9, -7, -7.5, -8, -8, -7.1f, -7.6f};  // group 1 wins with -13.5
  const Routing routing = route(context, config, logits, bias.data());
  EXPECT_EQ(routing.ids, (std::vector<int32_t>{2, 3}));
  EXPECT_FLOAT_EQ(routing.weights[0], 1.25f);  // the bias does not enter: equal scores, scaled by 2.5
  EXPECT_FLOAT_EQ(routing.weights[1], 1.25f);
}

TEST_P(Gate, GroupScoreIsTheBestInV2AndTheSumOfTwoInV3) {
  TestContext context(GetParam());
  const std::vector<float> logits = {3, -9, 2, 2};  // best: group 0; two best: group 1
  GateConfig config{GateScoring::kSigmoid, GateMethod::kNoAuxTc, 4, 1, 2, 1, false, 1};
  EXPECT_EQ(route(context, config, logits, nullptr).ids[0], 2);
  config.method = GateMethod::kGroupLimitedGreedy;
  config.scoring = GateScoring::kSoftmax;
  EXPECT_EQ(route(context, config, logits, nullptr).ids[0], 0);
}

TEST_P(Gate, EqualScoresLowerIdFirst) {
  TestContext context(GetParam());
  for (const GateConfig& config : {v2_lite(), v2(), v3(), kimi_k2()}) {
    const Routing routing = route(context, config, std::vector<float>(config.experts, 0.25f), nullptr);
    std::vector<int32_t> expected(config.experts_per_token);
    std::iota(expected.begin(), expected.end(), 0);
    EXPECT_EQ(routing.ids, expected);
  }
  GateConfig config = v2_lite(7);
  config.experts_per_token = 4;
  EXPECT_EQ(route(context, config, {1, 5, 3, 5, 3, 3, 1}, nullptr).ids, (std::vector<int32_t>{1, 3, 2, 4}));
}

TEST_P(Gate, EqualGroupsLowerIndexStays) {
  TestContext context(GetParam());
  GateConfig config{GateScoring::kSigmoid, GateMethod::kNoAuxTc, 6, 2, 3, 2, false, 1};
  EXPECT_EQ(route(context, config, {0, 0, 0, 0, 0, 0}, nullptr).ids, (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(route(context, config, {0, 0, 1, 1, 0, 0}, nullptr).ids, (std::vector<int32_t>{2, 3}));
}

TEST_P(Gate, BrokenLogitsGiveValidDistinctIds) {
  TestContext context(GetParam());
  int cases = 0;
  for (const GateConfig& config : {v2_lite(), v2(), v3(), kimi_k2()}) {
    for (const float broken : {kNaN, kInfinity, -kInfinity}) {
      for (const int32_t count : {1, 5, config.experts - 1, config.experts}) {
        std::vector<float> logits = random_values(config.experts, 7);
        std::fill_n(logits.begin(), count, broken);
        expect_valid_ids(config, route(context, config, logits, nullptr));
        std::vector<float> bias = random_values(config.experts, 8);
        std::fill_n(bias.end() - count, count, broken);
        if (config.method == GateMethod::kNoAuxTc)
          expect_valid_ids(config, route(context, config, logits, bias.data()));
        ++cases;
      }
    }
  }
  std::printf("%d broken rows\n", cases);
}

TEST_P(Gate, NanIsNeverPreferred) {
  TestContext context(GetParam());
  GateConfig config = kimi_k2(6);
  config.experts_per_token = 2;
  EXPECT_EQ(route(context, config, {kNaN, -3, kNaN, -2, kNaN, kNaN}, nullptr).ids, (std::vector<int32_t>{3, 1}));
}

TEST_P(Gate, NoRows) {
  TestContext context(GetParam());
  choose_experts(context, v3(), ConstRows(nullptr, 0, 256), nullptr, nullptr, nullptr);
  const std::vector<float> weight(256 * 8);
  router_logits(context, ConstRows(nullptr, 0, 8), ConstRows(weight.data(), 256, 8), Rows(nullptr, 0, 256));
}

TEST_P(Gate, RouterIsCloseToDoubleAndIndependentOfTheBatch) {
  TestContext context(GetParam(), 2);
  int64_t compared = 0;
  for (const auto& [tokens, experts, hidden] :
       {std::tuple<int64_t, int64_t, int64_t>{5, 64, 2048}, {9, 7, 33}, {3, 256, 7168}, {1, 1, 1}}) {
    const std::vector<float> x = random_values(tokens * hidden, 3), weight = random_values(experts * hidden, 4, 0.02f);
    std::vector<float> logits(tokens * experts, kNaN);
    const ConstRows weight_rows(weight.data(), experts, hidden);
    router_logits(context, ConstRows(x.data(), tokens, hidden), weight_rows, Rows(logits.data(), tokens, experts));
    for (int64_t t = 0; t < tokens; ++t) {
      std::vector<float> alone(experts, kNaN);
      router_logits(context, ConstRows(x.data() + t * hidden, 1, hidden), weight_rows, Rows(alone.data(), 1, experts));
      for (int64_t e = 0; e < experts; ++e, ++compared) {
        double sum = 0, magnitude = 0;
        for (int64_t i = 0; i < hidden; ++i) {
          const double term = double{x[t * hidden + i]} * weight[e * hidden + i];
          sum += term;
          magnitude += term * term;
        }
        // two units in the last place of the typical sum
        ASSERT_NEAR(logits[t * experts + e], sum, 2.5e-7 * std::sqrt(magnitude) + 1e-12);
        ASSERT_EQ(std::bit_cast<uint32_t>(alone[e]), std::bit_cast<uint32_t>(logits[t * experts + e]));
      }
    }
  }
  std::printf("%ld logits compared\n", compared);
}

}  // namespace
}  // namespace plait::kernels
