#include "kernels/activation.h"

#include "kernels/cpu/implementations.h"
#include "tests/kernels/implementations.h"

namespace plait::kernels {
namespace {

constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

PLAIT_TEST_BOTH_IMPLEMENTATIONS(SwiGlu);

float swiglu_of(Implementation implementation, float gate, float up) {
  TestContext context(implementation);
  const float gate_up[] = {gate, up};
  float y = kPoison;
  swiglu(context, ConstRows(gate_up, 1, 2), Rows(&y, 1, 1));
  return y;
}

TEST_P(SwiGlu, KnownNumbers) {
  EXPECT_EQ(swiglu_of(GetParam(), 0, 5), 0);
  EXPECT_FLOAT_EQ(swiglu_of(GetParam(), 1, 2), 1.4621172f);  // 2 / (1 + 1/e)
  EXPECT_FLOAT_EQ(swiglu_of(GetParam(), -1, 2), -0.53788284f);
  EXPECT_TRUE(std::isnan(swiglu_of(GetParam(), kPoison, 1)));
}

TEST_P(SwiGlu, LargeGatesNeitherOverflowNorTurnNaN) {
  for (const float gate : {80.0f, 87.5f, 88.8f, 100.0f, 1e4f, 3e38f}) {
    EXPECT_FLOAT_EQ(swiglu_of(GetParam(), gate, 1), gate);
    EXPECT_NEAR(swiglu_of(GetParam(), -gate, 1), 0, 1e-32);
  }
}

TEST_P(SwiGlu, RandomShapesAgainstDouble) {
  int64_t compared = 0;
  for (const int64_t width : {1, 7, 16, 31, 1408, 2816}) {
    const int64_t rows = 13, stride = 2 * width + 5;
    TestContext context(GetParam(), 3);
    const std::vector<float> gate_up = random_values(rows * stride, static_cast<uint32_t>(width), 5);
    std::vector<float> y(rows * (width + 1), kPoison);
    swiglu(context, ConstRows(gate_up.data(), rows, 2 * width, stride), Rows(y.data(), rows, width, width + 1));
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < width; ++j, ++compared) {
        const double g = gate_up[i * stride + j], u = gate_up[i * stride + width + j];
        const double expected = g / (1 + std::exp(-g)) * u;
        ASSERT_NEAR(y[i * (width + 1) + j], expected, 5e-7 * std::abs(expected) + 1e-30);
      }
      ASSERT_TRUE(std::isnan(y[i * (width + 1) + width])) << "wrote beyond the row";
    }
  }
  std::printf("%ld numbers compared\n", compared);
}

TEST_P(SwiGlu, NoRows) {
  TestContext context(GetParam());
  swiglu(context, ConstRows(nullptr, 0, 64), Rows(nullptr, 0, 32));
}

TEST(Exp, CloseToStdExp) {
  std::vector<float> x = {0.0f, -0.0f, -1e-30f, -1e-8f, -87.32f};
  for (float v = -1e-6f; v > -87.3f; v *= 1.0001f) x.push_back(v);
  for (float v = -0.01f; v > -87.3f; v -= 0.00371f) x.push_back(v);
  std::vector<float> y(x.size(), kPoison);
  fast::exp_non_positive(x, y.data());
  EXPECT_EQ(y[0], 1);
  EXPECT_EQ(y[1], 1);
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) worst = std::max(worst, std::abs(y[i] / std::exp(double{x[i]}) - 1));
  EXPECT_LT(worst, 1.5e-7);
  std::printf("%zu numbers, largest relative error %.2e\n", x.size(), worst);
}

TEST(Exp, Ends) {
  const std::vector<float> x = {-87.4f, -104, -1e4f, -3e38f, -std::numeric_limits<float>::infinity()};
  std::vector<float> y(x.size(), kPoison);
  fast::exp_non_positive(x, y.data());
  for (const float value : y) EXPECT_EQ(value, 0);
  const float nan = kPoison;
  float out = 0;
  fast::exp_non_positive({&nan, 1}, &out);
  EXPECT_TRUE(std::isnan(out));
}

}  // namespace
}  // namespace plait::kernels
