#include "kernels/experts.h"

#include <cstring>
#include <numeric>

#include "tests/kernels/implementations.h"

namespace plait::kernels {
namespace {

TEST(ExpertOrder, SortsByExpertAndKeepsTokenOrder) {
  const std::vector<int32_t> ids = {5, 2, /**/ 2, 7, /**/ 0, 5};
  const ExpertOrder order = ExpertOrder::make(ids, 3, 2, 0, 8);
  EXPECT_EQ(order.expert_of_group, (std::vector<int32_t>{0, 2, 5, 7}));
  EXPECT_EQ(order.group_begin, (std::vector<int64_t>{0, 1, 3, 5, 6}));
  EXPECT_EQ(order.row_of_pair, (std::vector<int32_t>{3, 1, 2, 5, 0, 4}));
  EXPECT_EQ(order.token_of_row, (std::vector<int32_t>{2, 0, 1, 0, 2, 1}));
}

TEST(ExpertOrder, OnlyLocalExperts) {
  const std::vector<int32_t> ids = {5, 2, /**/ 2, 7, /**/ 0, 5};
  const ExpertOrder order = ExpertOrder::make(ids, 3, 2, 4, 4);
  EXPECT_EQ(order.expert_of_group, (std::vector<int32_t>{5, 7}));
  EXPECT_EQ(order.group_begin, (std::vector<int64_t>{0, 2, 3}));
  EXPECT_EQ(order.row_of_pair, (std::vector<int32_t>{0, -1, -1, 2, -1, 1}));
  EXPECT_EQ(order.token_of_row, (std::vector<int32_t>{0, 2, 1}));
}

TEST(ExpertOrder, NothingLocalAndNothingAtAll) {
  const std::vector<int32_t> ids = {1, 2};
  const ExpertOrder none_local = ExpertOrder::make(ids, 1, 2, 8, 4);
  EXPECT_EQ(none_local.group_begin, std::vector<int64_t>{0});
  EXPECT_TRUE(none_local.token_of_row.empty());
  EXPECT_EQ(none_local.row_of_pair, (std::vector<int32_t>{-1, -1}));
  EXPECT_EQ(ExpertOrder::make({}, 0, 6, 0, 64).group_begin, std::vector<int64_t>{0});
}

PLAIT_TEST_BOTH_IMPLEMENTATIONS(Experts);

// 1e8 + 1 - 1e8 in float32 is 0 in this order and 1 in others.
TEST_P(Experts, SumInTheOrderOfSlots) {
  TestContext context(GetParam());
  const std::vector<int32_t> ids = {2, 0, 1};
  const ExpertOrder order = ExpertOrder::make(ids, 1, 3, 0, 3);
  const std::vector<float> x = {1, -1e8f, 1e8f};  // rows of experts 0, 1, 2
  const std::vector<float> weights = {1, 1, 1};
  float y = 7;
  combine_rows(context, ConstRows(x.data(), 3, 1), order, weights.data(), 3, Rows(&y, 1, 1));
  EXPECT_EQ(y, 7);
}

// Gather, then combine with weights: a sum over slots for every token, whatever else is in the step.
TEST_P(Experts, RoundTripOnRandomShapes) {
  int tokens_compared = 0;
  std::mt19937 generator(5);
  for (const int64_t width : {1, 5, 16, 100, 2048}) {
    for (const int64_t k : {1, 6, 8}) {
      const int64_t tokens = 17, experts = 24;
      std::vector<int32_t> ids;
      for (int64_t t = 0; t < tokens; ++t) {
        std::vector<int32_t> all(experts);
        std::iota(all.begin(), all.end(), 0);
        std::shuffle(all.begin(), all.end(), generator);
        ids.insert(ids.end(), all.begin(), all.begin() + k);
      }
      const std::vector<float> x = random_values(tokens * width, generator()),
                               before = random_values(tokens * width, 2);
      const std::vector<float> weights = random_values(tokens * k, generator());
      TestContext context(GetParam(), 2);
      const ExpertOrder order = ExpertOrder::make(ids, tokens, k, 4, 16);
      const auto rows = std::ssize(order.token_of_row);
      std::vector<float> sorted(rows * width, std::numeric_limits<float>::quiet_NaN());
      gather_rows(context, ConstRows(x.data(), tokens, width), order.token_of_row, Rows(sorted.data(), rows, width));
      std::vector<float> y = before;
      combine_rows(context, ConstRows(sorted.data(), rows, width), order, weights.data(), k,
                   Rows(y.data(), tokens, width));
      for (int64_t t = 0; t < tokens; ++t, ++tokens_compared) {
        double weight = 0;
        for (int64_t slot = 0; slot < k; ++slot)
          if (const int32_t id = ids[t * k + slot]; id >= 4 && id < 20) weight += weights[t * k + slot];
        for (int64_t j = 0; j < width; ++j)
          ASSERT_NEAR(y[t * width + j], before[t * width + j] + weight * x[t * width + j], 5e-6);

        const ExpertOrder alone = ExpertOrder::make(std::span(ids).subspan(t * k, k), 1, k, 4, 16);
        const std::vector<float> copies = [&] {
          std::vector<float> repeated;
          for (size_t i = 0; i < alone.token_of_row.size(); ++i)
            repeated.insert(repeated.end(), x.begin() + t * width, x.begin() + (t + 1) * width);
          return repeated;
        }();
        std::vector<float> one(before.begin() + t * width, before.begin() + (t + 1) * width);
        combine_rows(context, ConstRows(copies.data(), std::ssize(alone.token_of_row), width), alone, &weights[t * k],
                     k, Rows(one.data(), 1, width));
        ASSERT_EQ(std::memcmp(one.data(), &y[t * width], width * sizeof(float)), 0);
      }
    }
  }
  std::printf("%d tokens compared\n", tokens_compared);
}

TEST_P(Experts, NoRows) {
  TestContext context(GetParam());
  const ExpertOrder order = ExpertOrder::make({}, 0, 6, 0, 64);
  gather_rows(context, ConstRows(nullptr, 0, 32), {}, Rows(nullptr, 0, 32));
  combine_rows(context, ConstRows(nullptr, 0, 32), order, nullptr, 6, Rows(nullptr, 0, 32));
}

}  // namespace
}  // namespace plait::kernels
