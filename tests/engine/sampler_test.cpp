#include "engine/sampler.h"

#include <numeric>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/philox.h"

namespace plait {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

SampledToken sample_one(std::vector<float> logits, const SamplingRow& row) {
  static ThreadPool pool(1);
  const SamplingRow rows[] = {row};
  return sample(pool, Rows(logits.data(), 1, static_cast<int64_t>(logits.size())), rows).at(0);
}

SampledToken sample_one(std::vector<float> logits, const SamplingParams& params, std::vector<int32_t> outputs = {}) {
  return sample_one(std::move(logits), {.params = &params, .output_ids = outputs, .output_index = std::ssize(outputs)});
}

// Outputs of a row at the given output index; what they are matters to penalties only.
std::vector<int32_t> outputs_of_length(int64_t index) {
  return std::vector<int32_t>(static_cast<size_t>(index), 0);
}

// -- The specification, in doubles and with a full sort
// ------------------------------------------------------------------

struct Kept {
  std::vector<double> probability;  // [vocab], of the filtered distribution
  double slack = 0;                 // distance of the decision that was closest to a tie, in probability
};

Kept kept_distribution(std::span<const float> logits, const SamplingParams& params) {
  std::vector<size_t> order;
  for (size_t i = 0; i < logits.size(); ++i)
    if (logits[i] > -kInfinity) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  std::vector<double> weight(logits.size(), 0.0);
  double total = 0;
  for (const size_t i : order)
    total += weight[i] = std::exp((static_cast<double>(logits[i]) - logits[order[0]]) / params.temperature);
  Kept kept{std::vector<double>(logits.size(), 0.0), 1};
  double before = 0, kept_total = 0;
  for (size_t rank = 0; rank < order.size(); ++rank) {
    const double probability = weight[order[rank]] / total;
    if (params.top_k > 0 && rank >= static_cast<size_t>(params.top_k)) break;
    if (params.top_p < 1) kept.slack = std::min(kept.slack, std::abs(before - params.top_p));
    if (before >= params.top_p) break;
    if (params.min_p > 0 && weight[order[rank]] != 1)
      kept.slack = std::min(kept.slack, std::abs(weight[order[rank]] - params.min_p));
    if (weight[order[rank]] < params.min_p) break;
    kept.probability[order[rank]] = probability;
    kept_total += probability;
    before += probability;
  }
  for (double& probability : kept.probability) probability /= kept_total;
  return kept;
}

TEST(Sampler, AgreesWithTheSpecificationOnRandomRows) {
  std::mt19937_64 random(7);
  const double temperatures[] = {1e-3, 0.3, 1, 2.5, 1e9};
  const double top_ps[] = {1e-9, 0.1, 0.5, 0.9, 0.999, 1, 1};
  const double min_ps[] = {0, 0, 0, 0.01, 0.3, 1};
  const int64_t top_ks[] = {-1, -1, -1, 2, 5, 40, 1000};
  int tried = 0, near_tie = 0;
  for (; tried < 6000; ++tried) {
    SamplingParams params;
    params.temperature = temperatures[random() % std::size(temperatures)];
    params.top_p = top_ps[random() % std::size(top_ps)];
    params.min_p = min_ps[random() % std::size(min_ps)];
    params.top_k = top_ks[random() % std::size(top_ks)];
    params.seed = random();
    std::vector<float> logits(1 + random() % 600);
    const bool coarse = random() % 2 != 0;  // ties
    std::normal_distribution<float> normal(0, 3);
    for (float& logit : logits) logit = coarse ? std::round(normal(random)) : normal(random);
    logits[random() % logits.size()] = kNan;
    if (random() % 4 == 0) logits[random() % logits.size()] = -kInfinity;
    logits[random() % logits.size()] = 1;

    const auto index = static_cast<int64_t>(random() % 50);
    const int32_t chosen = sample_one(logits, params, outputs_of_length(index)).id;
    const Kept kept = kept_distribution(logits, params);
    if (kept.slack < 1e-6) {
      ++near_tie;
      continue;
    }
    ASSERT_GE(chosen, 0);
    const auto position = kept.probability.begin() + chosen;
    const double below = std::accumulate(kept.probability.begin(), position, 0.0);
    const double uniform = uniform_of(params.seed, static_cast<uint64_t>(index));
    ASSERT_GT(*position, 0) << "a token that the filters exclude";
    ASSERT_GE(uniform, below - 1e-5);
    ASSERT_LE(uniform, below + *position + 1e-5);
  }
  std::printf("%d random rows, %d left out because a filter's decision was a tie\n", tried, near_tie);
  EXPECT_LT(near_tie, tried / 5);
}

// -- Distribution
// ------------------------------------------------------------------------------------------------------------

// Pearson's statistic of `draws` samples against the specification's distribution, and its degrees of freedom.
std::pair<double, int> chi_square(const std::vector<float>& logits, SamplingParams params, int draws) {
  const Kept kept = kept_distribution(logits, params);
  std::vector<int> counts(logits.size(), 0);
  for (int i = 0; i < draws; ++i) {
    params.seed = static_cast<uint64_t>(i) * 977 + 5;
    ++counts[static_cast<size_t>(sample_one(logits, params).id)];
  }
  double statistic = 0;
  int cells = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double expected = kept.probability[i] * draws;
    if (expected == 0) {
      EXPECT_EQ(counts[i], 0) << "token " << i;
      continue;
    }
    statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
    ++cells;
  }
  return {statistic, cells - 1};
}

TEST(Sampler, SamplesFollowTheDistribution) {
  const std::vector<float> logits = {1.5, 0.2, -1, 0.9, 2, -0.3, 1.1, 0, -2, 1.9};
  const SamplingParams cases[] = {
      {.temperature = 1}, {.temperature = 0.5},           {.temperature = 3},
      {.top_p = 0.8},     {.temperature = 2, .top_k = 4}, {.temperature = 1.5, .top_p = 0.9, .top_k = 7, .min_p = 0.1},
      {.min_p = 0.2}};
  constexpr int kDraws = 40000;
  for (const SamplingParams& params : cases) {
    const auto [statistic, freedom] = chi_square(logits, params, kDraws);
    // Mean n, variance 2n; five deviations above is beyond 1 in 10^5.
    EXPECT_LT(statistic, freedom + 5 * std::sqrt(2.0 * freedom)) << "T " << params.temperature << " p " << params.top_p;
  }
  std::printf("%zu distributions, %d draws each\n", std::size(cases), kDraws);
}

TEST(Sampler, SuccessiveTokensOfOneSeedFollowTheDistribution) {
  const std::vector<float> logits = {0, 1, 2, 3};
  SamplingParams params{.seed = 42};
  const Kept kept = kept_distribution(logits, params);
  std::array<int, 4> counts{};
  constexpr int kDraws = 20000;
  std::vector<int32_t> outputs;
  for (int i = 0; i < kDraws; ++i) {
    outputs.push_back(sample_one(logits, params, outputs).id);
    ++counts[static_cast<size_t>(outputs.back())];
  }
  double statistic = 0;
  for (size_t i = 0; i < 4; ++i) {
    const double expected = kept.probability[i] * kDraws;
    statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  EXPECT_LT(statistic, 3 + 5 * std::sqrt(6.0));
}

TEST(Philox, PublishedVectors) {  // of Random123's known-answer tests
  EXPECT_THAT(philox4x32({0, 0, 0, 0}, {0, 0}), ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(philox4x32({~0U, ~0U, ~0U, ~0U}, {~0U, ~0U}),
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
              ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

// -- Independence of the batch
// ---------------------------------------------------------------------------------------------

TEST(Sampler, ARowDoesNotDependOnItsBatch) {
  std::mt19937_64 random(3);
  constexpr int64_t kVocab = 1000;
  constexpr size_t kRows = 24;
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(kVocab * kRows);
  for (float& logit : logits) logit = normal(random);
  std::vector<SamplingParams> params(kRows);
  std::vector<std::vector<int32_t>> outputs(kRows);
  std::vector<SamplingRow> rows(kRows);
  std::vector<SampledToken> alone;
  for (size_t i = 0; i < kRows; ++i) {
    params[i] = {.temperature = i % 5 == 0 ? 0.0 : 0.7 + 0.1 * static_cast<double>(i % 4),
                 .top_p = i % 3 == 0 ? 0.9 : 1.0,
                 .top_k = i % 4 == 0 ? 20 : -1,
                 .frequency_penalty = i % 2 == 0 ? 0.5 : 0.0,
                 .repetition_penalty = i % 6 == 0 ? 1.3 : 1.0,
                 .seed = random()};
    outputs[i].resize(random() % 30);
    for (int32_t& id : outputs[i]) id = static_cast<int32_t>(random() % kVocab);
    rows[i] = {.params = &params[i],
               .output_ids = outputs[i],
               .output_index = std::ssize(outputs[i]),
               .want_logprob = true,
               .top_logprobs = 3};
    alone.push_back(sample_one({logits.begin() + static_cast<ptrdiff_t>(i * kVocab),
                                logits.begin() + static_cast<ptrdiff_t>((i + 1) * kVocab)},
                               rows[i]));
  }
  int tried = 0;
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    for (int repeat = 0; repeat < 50; ++repeat) {
      std::vector<size_t> members(1 + random() % kRows);
      for (size_t& member : members) member = random() % kRows;
      std::vector<float> batch;
      std::vector<SamplingRow> batch_rows;
      for (const size_t member : members) {
        const auto begin = logits.begin() + static_cast<ptrdiff_t>(member * kVocab);
        batch.insert(batch.end(), begin, begin + kVocab);
        batch_rows.push_back(rows[member]);
      }
      const auto tokens = sample(pool, Rows(batch.data(), static_cast<int64_t>(members.size()), kVocab), batch_rows);
      for (size_t i = 0; i < members.size(); ++i, ++tried) {
        ASSERT_EQ(tokens[i].id, alone[members[i]].id);
        ASSERT_EQ(tokens[i].logprob, alone[members[i]].logprob);
        ASSERT_EQ(tokens[i].top[2].id, alone[members[i]].top[2].id);
      }
    }
  }
  std::printf("%d rows in 100 batches\n", tried);
}

// -- Greedy, penalties, bias, masks
// ------------------------------------------------------------------------------------------

TEST(Sampler, GreedyTakesTheLowerIdOfATie) {
  const SamplingParams greedy{.temperature = 0};
  EXPECT_EQ(sample_one({1, 3, 3, 2}, greedy).id, 1);
  EXPECT_EQ(sample_one(std::vector<float>(100, -1), greedy).id, 0);
  EXPECT_EQ(sample_one({1, 3, 3, 2}, {.temperature = 5, .top_k = 1}).id, 1);
}

// The token whose adjusted logit is the largest, with everything else pushed far down: reads one adjusted logit back.
float adjusted_logit(float logit, int32_t id, SamplingRow row) {
  // Greedy between the token under test and a rival of known logit: bisect for the rival's logit that ties.
  float low = -100, high = 100;
  for (int i = 0; i < 40; ++i) {
    std::vector<float> logits(8, -1000);
    const float middle = (low + high) / 2;
    logits[static_cast<size_t>(id)] = logit;
    logits[7] = middle;
    (sample_one(logits, row).id == id ? low : high) = middle;
  }
  return low;
}

TEST(Sampler, PenaltiesByTheirFormulas) {
  SamplingParams params{.temperature = 0, .frequency_penalty = 0.5, .presence_penalty = 0.25};
  const std::vector<int32_t> prompt = {4, 4, 5};
  const std::vector<int32_t> outputs = {1, 2, 1, 1};
  SamplingRow row{.params = &params, .prompt_ids = prompt, .output_ids = outputs, .output_index = std::ssize(outputs)};
  EXPECT_NEAR(adjusted_logit(2, 1, row), 2 - 3 * 0.5 - 0.25, 1e-4);
  EXPECT_NEAR(adjusted_logit(2, 2, row), 2 - 0.5 - 0.25, 1e-4);
  EXPECT_NEAR(adjusted_logit(2, 4, row), 2, 1e-4) << "prompt tokens are not penalised";

  params = {.temperature = 0, .repetition_penalty = 1.6};
  EXPECT_NEAR(adjusted_logit(2, 1, row), 2 / 1.6, 1e-4) << "once, however often it occurs";
  EXPECT_NEAR(adjusted_logit(-2, 1, row), -2 * 1.6, 1e-4);
  EXPECT_NEAR(adjusted_logit(2, 4, row), 2 / 1.6, 1e-4) << "of the prompt as well";
  EXPECT_NEAR(adjusted_logit(2, 3, row), 2, 1e-4);

  params = {.temperature = 0, .frequency_penalty = 1, .repetition_penalty = 2, .logit_bias = {{1, 0.75F}}};
  EXPECT_NEAR(adjusted_logit(2, 1, row), (2.0 - 3) * 2 + 0.75, 1e-4) << "additive, then scaling, then bias";
}

TEST(Sampler, NegativePenaltiesEncourage) {
  const SamplingParams params{.temperature = 0, .frequency_penalty = -2, .presence_penalty = -2};
  EXPECT_EQ(sample_one({0, 3.5F, 0, 0}, params, {2}).id, 2);
}

TEST(Sampler, EndIdsAreImpossibleBeforeMinNewTokens) {
  const SamplingParams params{.temperature = 0, .min_new_tokens = 2};
  const std::vector<int32_t> end_ids = {1, 3};
  for (int64_t index = 0; index < 4; ++index) {
    const auto outputs = outputs_of_length(index);
    const auto token =
        sample_one({0, 9, 1, 8},
                   {.params = &params, .output_ids = outputs, .output_index = std::ssize(outputs), .end_ids = end_ids});
    EXPECT_EQ(token.id, index < 2 ? 2 : 1);
  }
}

TEST(Sampler, LogitBiasForbidsAndForces) {
  EXPECT_EQ(sample_one({5, 4, 3}, {.temperature = 0, .logit_bias = {{0, -100}, {2, 100}}}).id, 2);
  EXPECT_EQ(sample_one({5, 4, 3}, {.temperature = 0, .logit_bias = {{0, -100}}}).id, 1);
}

// -- Extremes
// ------------------------------------------------------------------------------------------------------------------

TEST(Sampler, Extremes) {
  std::mt19937_64 random(5);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(163840);
  for (float& logit : logits) logit = normal(random);
  logits[777] = 30;
  const float top = logits[777];
  const struct {
    const char* name;
    SamplingParams params;
  } take_the_best[] = {
      {"temperature 0", {.temperature = 0}},
      {"temperature 1e-9", {.temperature = 1e-9}},
      {"just above greedy", {.temperature = 1e-6}},
      {"top_p tiny", {.temperature = 1, .top_p = 1e-12}},
      {"top_p tiny, hot", {.temperature = 1e9, .top_p = 1e-12}},
      {"min_p 1", {.temperature = 1, .min_p = 1}},
      {"top_k 1", {.temperature = 1e9, .top_k = 1}},
  };
  for (const auto& [name, params] : take_the_best) EXPECT_EQ(sample_one(logits, params).id, 777) << name;

  // Infinitely hot: uniform, and the filters still go by logits.
  EXPECT_GE(sample_one(logits, {.temperature = 1e30, .top_k = 1 << 30}).id, 0);
  std::map<int32_t, int> seen;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    const int32_t id = sample_one(logits, {.temperature = 1e9, .top_k = 2, .seed = seed}).id;
    ++seen[id];
  }
  ASSERT_EQ(seen.size(), 2U);
  EXPECT_GT(seen[777], 100);
  EXPECT_LT(seen[777], 200);

  // Half of a flat distribution is the lower half of the ids.
  const std::vector<float> flat(1000, top);
  for (uint64_t seed = 0; seed < 200; ++seed) EXPECT_LT(sample_one(flat, {.top_p = 0.5, .seed = seed}).id, 500);
}

TEST(Sampler, NotFinite) {
  const SamplingParams greedy{.temperature = 0};
  const SamplingParams warm{.temperature = 1, .top_p = 0.9};
  for (const SamplingParams* params : {&greedy, &warm}) {
    EXPECT_EQ(sample_one({kNan, 1, kNan}, *params).id, 1);
    EXPECT_EQ(sample_one({-kInfinity, kNan, -5}, *params).id, 2);
    EXPECT_EQ(sample_one({3, kInfinity, 4}, *params).id, 1);
    for (const auto& hopeless : {std::vector<float>{kNan, kNan}, {-kInfinity, -kInfinity}, {kNan, -kInfinity}}) {
      const auto token = sample_one(hopeless, *params);
      EXPECT_TRUE(token.not_finite);
      EXPECT_EQ(token.id, -1);
    }
  }
  EXPECT_TRUE(sample_one({kNan, kNan}, SamplingRow{.target_id = 0}).not_finite);
  const std::vector<int32_t> all = {0, 1};
  const SamplingParams masked{.temperature = 0, .min_new_tokens = 1};
  EXPECT_TRUE(sample_one({1, 2}, {.params = &masked, .end_ids = all}).not_finite) << "every token is an end id";
}

// -- Logprobs
// --------------------------------------------------------------------------------------------------------------------

TEST(Sampler, LogprobsAreThoseOfTheRawLogits) {
  std::mt19937_64 random(11);
  std::normal_distribution<float> normal(0, 4);
  std::vector<float> logits(163840);
  for (float& logit : logits) logit = normal(random);
  logits[5] = kNan;
  double sum = 0;
  for (const float logit : logits)
    if (!std::isnan(logit)) sum += std::exp(static_cast<double>(logit));
  const auto expected = [&](int32_t id) { return logits[static_cast<size_t>(id)] - std::log(sum); };

  const SamplingParams params{.temperature = 0.3, .top_k = 5, .frequency_penalty = 2, .seed = 9};
  const std::vector<int32_t> outputs = {1, 2, 3}, wanted = {163839, 0, 5, 2};
  const auto token = sample_one(logits, {.params = &params,
                                         .output_ids = outputs,
                                         .output_index = std::ssize(outputs),
                                         .want_logprob = true,
                                         .top_logprobs = 20,
                                         .logprob_ids = wanted});
  EXPECT_NEAR(token.logprob, expected(token.id), 2e-6);
  ASSERT_EQ(token.top.size(), 20U);
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::erase(order, 5);
  std::partial_sort(order.begin(), order.begin() + 20, order.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  for (size_t i = 0; i < 20; ++i) {
    EXPECT_EQ(token.top[i].id, order[i]);
    EXPECT_NEAR(token.top[i].logprob, expected(order[i]), 2e-6);
  }
  ASSERT_EQ(token.requested.size(), 4U);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(token.requested[i].id, wanted[i]);
  EXPECT_NEAR(token.requested[1].logprob, expected(0), 2e-6);
  EXPECT_EQ(token.requested[2].logprob, -kInfinity);
}

TEST(Sampler, PromptRowsReportTheirTarget) {
  const auto token = sample_one({0, 0, 0, 0}, SamplingRow{.top_logprobs = 2, .target_id = 3});
  EXPECT_EQ(token.id, -1);
  EXPECT_FALSE(token.not_finite);
  EXPECT_NEAR(token.logprob, -std::log(4.0), 1e-6);
  ASSERT_EQ(token.top.size(), 2U);
  EXPECT_EQ(token.top[0].id, 0);
  EXPECT_EQ(token.top[1].id, 1);
}

TEST(Sampler, FewerTopLogprobsThanAskedIfFewerArePossible) {
  const SamplingParams greedy{.temperature = 0};
  EXPECT_EQ(sample_one({1, -kInfinity, kNan}, {.params = &greedy, .top_logprobs = 20}).top.size(), 1U);
}

// -- Parameters
// ------------------------------------------------------------------------------------------------------------------

TEST(SamplingParams, RangesAreCheckedByName) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  const struct {
    SamplingParams params;
    const char* message;
  } bad[] = {
      {{.temperature = -0.1}, "temperature is -0.1; it must be in [0, "},
      {{.temperature = nan}, "temperature is nan"},
      {{.temperature = infinity}, "temperature is inf"},
      {{.top_p = 0}, "top_p is 0; it must be in (0, 1]"},
      {{.top_p = 1.01}, "top_p"},
      {{.top_k = 0}, "top_k is 0; it must be at least 1, or -1"},
      {{.top_k = -2}, "top_k"},
      {{.min_p = -0.5}, "min_p is -0.5; it must be in [0, 1]"},
      {{.min_p = 1.5}, "min_p"},
      {{.frequency_penalty = 2.5}, "frequency_penalty is 2.5; it must be in [-2, 2]"},
      {{.presence_penalty = -3}, "presence_penalty"},
      {{.repetition_penalty = 0}, "repetition_penalty is 0; it must be in (0, 2]"},
      {{.repetition_penalty = nan}, "repetition_penalty"},
      {{.logit_bias = {{100, 1.0F}}}, "logit_bias names token 100, but the vocabulary has tokens 0 to 99"},
      {{.logit_bias = {{-1, 1.0F}}}, "logit_bias names token -1"},
      {{.logit_bias = {{1, kNan}}}, "logit_bias of token 1"},
      {{.max_new_tokens = -1}, "max_new_tokens is -1"},
      {{.max_new_tokens = 4, .min_new_tokens = 5},
       "min_new_tokens is 5; it must be in [0, max_new_tokens], which is 4"},
      {{.min_new_tokens = -1}, "min_new_tokens"},
      {{.stop_token_ids = {3, 200}}, "stop_token_ids names token 200"},
  };
  for (const auto& [params, message] : bad) {
    const Status status = params.validate(100);
    ASSERT_TRUE(status.has_error()) << message;
    EXPECT_EQ(status.error().kind, ErrorKind::kInvalid);
    EXPECT_THAT(status.error().message, HasSubstr(message));
  }
  const SamplingParams good[] = {
      {},
      {.temperature = 0, .top_p = 1, .top_k = -1, .max_new_tokens = 0},
      {.temperature = 1e9, .top_p = 1e-12, .top_k = 1 << 30, .min_p = 1},
      {.frequency_penalty = -2, .presence_penalty = 2, .repetition_penalty = 2, .logit_bias = {{99, -100.0F}}},
      {.max_new_tokens = 3, .min_new_tokens = 3, .stop_token_ids = {0, 99}},
  };
  for (const SamplingParams& params : good) EXPECT_FALSE(params.validate(100).has_error());
  std::printf("%zu bad and %zu good parameter sets\n", std::size(bad), std::size(good));
}

}  // namespace
}  // namespace plait
