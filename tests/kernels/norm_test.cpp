#include "kernels/norm.h"

#include <cstring>

#include "tests/kernels/implementations.h"

namespace plait::kernels {
namespace {

PLAIT_TEST_BOTH_IMPLEMENTATIONS(Norm);

constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

TEST_P(Norm, KnownNumbers) {
  TestContext context(GetParam());
  const std::vector<float> x = {3, 4, 0, 0}, weight = {1, 2, 3, -1};
  std::vector<float> y(4, kPoison);
  rms_norm(context, ConstRows(x.data(), 1, 4), weight.data(), 0, Rows(y.data(), 1, 4));  // mean square 6.25
  EXPECT_FLOAT_EQ(y[0], 1.2f);
  EXPECT_FLOAT_EQ(y[1], 3.2f);
  EXPECT_EQ(y[2], 0);
  EXPECT_EQ(y[3], 0);
}

// Published models say 1e-6 and 1e-5; on small rows they differ visibly.
TEST_P(Norm, EpsilonCounts) {
  TestContext context(GetParam());
  const std::vector<float> x(8, 1e-3f), weight(8, 1);
  for (const float eps : {1e-6f, 1e-5f}) {
    std::vector<float> y(8, kPoison);
    rms_norm(context, ConstRows(x.data(), 1, 8), weight.data(), eps, Rows(y.data(), 1, 8));
    EXPECT_NEAR(y[0], 1e-3 / std::sqrt(1e-6 + double{eps}), 1e-6);
  }
  std::vector<float> zero(8, 0);
  rms_norm(context, ConstRows(zero.data(), 1, 8), weight.data(), 1e-6f, Rows(zero.data(), 1, 8));
  EXPECT_EQ(zero, std::vector<float>(8, 0));
}

TEST_P(Norm, RandomShapesAgainstDoubleInAnyBatch) {
  int rows_compared = 0;
  uint32_t seed = 0;
  for (const int64_t width : {1, 3, 15, 16, 17, 63, 64, 65, 100, 512, 2048, 7168}) {
    const int64_t rows = 11, stride = width + 3;
    const std::vector<float> delta = random_values(rows * stride, ++seed), weight = random_values(width, ++seed);
    const std::vector<float> residual = random_values(rows * stride, ++seed, 4);
    for (const int threads : {1, 3}) {
      TestContext context(GetParam(), threads);
      std::vector<float> sum = residual, y(rows * stride, kPoison);
      add_rms_norm(context, ConstRows(delta.data(), rows, width, stride), Rows(sum.data(), rows, width, stride),
                   weight.data(), 1e-6f, Rows(y.data(), rows, width, stride));
      for (int64_t i = 0; i < rows; ++i, ++rows_compared) {
        double squares = 0;
        for (int64_t j = 0; j < width; ++j) {
          ASSERT_EQ(sum[i * stride + j], residual[i * stride + j] + delta[i * stride + j]);
          squares += double{sum[i * stride + j]} * sum[i * stride + j];
        }
        const double inverse = 1 / std::sqrt(squares / static_cast<double>(width) + 1e-6);
        for (int64_t j = 0; j < width; ++j) {
          const double expected = weight[j] * (sum[i * stride + j] * inverse);
          ASSERT_NEAR(y[i * stride + j], expected, 4e-7 * std::abs(expected)) << "width " << width;
        }
        for (int64_t j = width; j < stride; ++j) ASSERT_TRUE(std::isnan(y[i * stride + j])) << "wrote beyond the row";
        // Alone and in place: the same bits.
        std::vector<float> alone(sum.begin() + i * stride, sum.begin() + i * stride + width);
        rms_norm(context, ConstRows(alone.data(), 1, width), weight.data(), 1e-6f, Rows(alone.data(), 1, width));
        ASSERT_EQ(std::memcmp(alone.data(), &y[i * stride], width * sizeof(float)), 0);
      }
    }
  }
  std::printf("%d rows compared\n", rows_compared);
}

TEST_P(Norm, NoRows) {
  TestContext context(GetParam());
  rms_norm(context, ConstRows(nullptr, 0, 64), nullptr, 1e-6f, Rows(nullptr, 0, 64));
  add_rms_norm(context, ConstRows(nullptr, 0, 64), Rows(nullptr, 0, 64), nullptr, 1e-6f, Rows(nullptr, 0, 64));
}

}  // namespace
}  // namespace plait::kernels
