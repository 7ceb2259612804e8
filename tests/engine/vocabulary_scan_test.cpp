#include "engine/vocabulary_scan.h"

#include <numeric>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace plait {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Few distinct values, so that ties are common, and everything that is not finite.
std::vector<float> awkward_row(std::mt19937_64& random, size_t size) {
  std::vector<float> row(size);
  for (float& value : row) {
    const uint64_t kind = random() % 20;
    value = kind == 0   ? kNan
            : kind == 1 ? -kInfinity
            : kind == 2 ? kInfinity
                        : static_cast<float>(static_cast<int64_t>(random() % 9) - 4);
  }
  return row;
}

// The same tokens as a plain sort gives: impossible ones left out, +infinity as the largest finite float.
std::vector<Candidate> sorted_candidates(std::span<const float> row) {
  std::vector<Candidate> sorted;
  for (size_t i = 0; i < row.size(); ++i)
    if (row[i] > -kInfinity)
      sorted.push_back({std::min(row[i], std::numeric_limits<float>::max()), static_cast<int32_t>(i)});
  std::sort(sorted.begin(), sorted.end(), ranks_before);
  return sorted;
}

TEST(VocabularyScan, WeightsAreExponentials) {
  std::vector<float> logits;
  for (double x = 0; x > -86.9; x -= 1.7e-4) logits.push_back(static_cast<float>(x));
  for (const float inverse_temperature : {1.0F, 0.25F}) {
    std::vector<float> weights(logits.size());
    const double sum = softmax_weights(logits, 0, inverse_temperature, weights);
    double worst = 0, exact_sum = 0;
    for (size_t i = 0; i < logits.size(); ++i) {
      const double exact = std::exp(static_cast<double>(logits[i] * inverse_temperature));
      worst = std::max(worst, std::abs(weights[i] - exact) / exact);
      exact_sum += exact;
    }
    std::printf("exp: %zu arguments, largest relative error %.2e\n", logits.size(), worst);
    EXPECT_LT(worst, 2.5e-7);
    EXPECT_NEAR(sum / exact_sum, 1, 1e-8);
    if (inverse_temperature == 1) {
      EXPECT_EQ(sum_of_exp(logits, 0), sum);
    }
  }
}

TEST(VocabularyScan, WeightsOfWhatIsNotFinite) {
  const std::vector<float> logits = {2, kNan, -kInfinity, kInfinity, -1e30F, -86, -3e38F};
  std::vector<float> weights(logits.size());
  softmax_weights(logits, 2, 1, weights);
  EXPECT_THAT(weights, testing::ElementsAre(1, 0, 0, 1, 0, 0, 0));
}

TEST(VocabularyScan, AgreesWithSortingOnAwkwardRows) {
  std::mt19937_64 random(1);
  int tried = 0;
  for (size_t size = 1; size < 200; ++size) {
    for (int repeat = 0; repeat < 10; ++repeat, ++tried) {
      const auto row = awkward_row(random, size);
      const auto sorted = sorted_candidates(row);
      EXPECT_EQ(argmax(row), sorted.empty() ? -1 : sorted.front().id);
      EXPECT_EQ(max_of(row), sorted.empty() ? -kInfinity : sorted.front().logit);

      const auto k = static_cast<int64_t>(random() % (size + 3));
      auto best = top_ranked(row, k);
      std::sort(best.begin(), best.end(), ranks_before);
      ASSERT_EQ(best.size(), std::min(sorted.size(), static_cast<size_t>(k)));
      for (size_t i = 0; i < best.size(); ++i) ASSERT_EQ(best[i].id, sorted[i].id) << "size " << size << " k " << k;

      if (sorted.empty()) continue;
      std::vector<float> weights(size);
      const double total = softmax_weights(row, max_of(row), 0.5F, weights);
      EXPECT_DOUBLE_EQ(total, std::accumulate(weights.begin(), weights.end(), 0.0));
      EXPECT_EQ(weights[static_cast<size_t>(sorted.front().id)], 1);
      const float least = weights[random() % size];
      if (least == 0) continue;
      const auto found = at_least(row, weights, least);
      EXPECT_TRUE(std::is_sorted(found.begin(), found.end(), [](auto& a, auto& b) { return a.id < b.id; }));
      EXPECT_EQ(static_cast<ptrdiff_t>(found.size()),
                std::count_if(weights.begin(), weights.end(), [least](float weight) { return weight >= least; }));
    }
  }
  std::printf("%d rows\n", tried);
}

TEST(VocabularyScan, TopRankedOfLongAscendingRow) {  // the threshold rises all the time
  std::vector<float> row(163840);
  std::iota(row.begin(), row.end(), 0.0F);
  auto best = top_ranked(row, 20);
  std::sort(best.begin(), best.end(), ranks_before);
  ASSERT_EQ(best.size(), 20U);
  for (int32_t i = 0; i < 20; ++i) EXPECT_EQ(best[static_cast<size_t>(i)].id, 163839 - i);
}

}  // namespace
}  // namespace plait
