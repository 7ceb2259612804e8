#include "kernels/rope.h"

#include "tests/kernels/implementations.h"

namespace plait::kernels {
namespace {

RopeConfig deepseek_v3() {
  return {.theta = 1e4, .yarn = true, .factor = 40, .beta_fast = 32, .beta_slow = 1, .mscale = 1, .mscale_all_dim = 1};
}

RopeConfig deepseek_v2_lite() {
  RopeConfig config = deepseek_v3();
  config.mscale = config.mscale_all_dim = 0.707;
  return config;
}

RopeConfig kimi_k2(double factor) {
  RopeConfig config = deepseek_v3();
  config.theta = 5e4;
  config.beta_fast = 1;
  config.factor = factor;
  return config;
}

void expect_range(const RopeConfig& config, double low, double high) {
  const YarnRange range = yarn_range(config, 64);
  EXPECT_EQ(range.low, low);
  EXPECT_EQ(range.high, high);
}

TEST(Yarn, RangeOfPublishedModels) {
  expect_range(deepseek_v3(), 10, 23);
  expect_range(deepseek_v2_lite(), 10, 23);
  expect_range(kimi_k2(32), 19, 20);
  RopeConfig kimi_with_wide_ramp = kimi_k2(64);
  kimi_with_wide_ramp.beta_fast = 32;
  expect_range(kimi_with_wide_ramp, 8, 20);
}

TEST(Yarn, RangeStaysInsideTheHead) {
  RopeConfig config = deepseek_v3();
  config.original_max_positions = 16;  // less than beta_fast turns: the pair would be negative
  config.beta_fast = 4;
  EXPECT_EQ(yarn_range(config, 64).low, 0);
  config.original_max_positions = 1 << 20;
  config.beta_slow = 1e-9;  // more turns than the slowest pair makes
  EXPECT_EQ(yarn_range(config, 64).high, 63);
}

TEST(Yarn, SoftmaxScaleToSevenDigits) {
  EXPECT_NEAR(mla_softmax_scale(deepseek_v3(), 192), 0.1352338, 5e-8);
  EXPECT_NEAR(mla_softmax_scale(deepseek_v2_lite(), 192), 0.1147214, 5e-8);
  EXPECT_NEAR(mla_softmax_scale(kimi_k2(32), 192), 0.1308608, 5e-8);
  EXPECT_NEAR(mla_softmax_scale(kimi_k2(64), 192), 0.1446796, 5e-8);
  EXPECT_DOUBLE_EQ(mla_softmax_scale(RopeConfig{.mscale_all_dim = 1}, 64), 0.125);  // without YaRN: no mscale
}

TEST(Yarn, FrequenciesKeepRampAndDivide) {
  const RopeTable plain = RopeTable::make(RopeConfig{.theta = 1e4}, 64);
  const RopeTable yarn = RopeTable::make(deepseek_v3(), 64);
  ASSERT_EQ(yarn.frequencies.size(), 32u);
  EXPECT_EQ(yarn.amplitude, 1);
  EXPECT_DOUBLE_EQ(plain.frequencies[8], 0.1);
  for (int i = 0; i <= 10; ++i) EXPECT_DOUBLE_EQ(yarn.frequencies[i], plain.frequencies[i]) << i;
  for (int i = 23; i < 32; ++i) EXPECT_DOUBLE_EQ(yarn.frequencies[i], plain.frequencies[i] / 40) << i;
  // 3 of 13 steps up the ramp
  EXPECT_NEAR(yarn.frequencies[13], plain.frequencies[13] * (10.0 / 13 + 3.0 / 13 / 40), 1e-15);
}

TEST(Yarn, RampOfNoLengthIsAStep) {
  RopeConfig config = kimi_k2(32);
  config.original_max_positions = 1 << 20;  // the only pair turns more often than either beta: both bounds are 1
  const YarnRange range = yarn_range(config, 2);
  EXPECT_EQ(range.low, 1);
  EXPECT_EQ(range.high, 1);
  EXPECT_EQ(RopeTable::make(config, 2).frequencies, std::vector<double>{1.0});
}

TEST(Yarn, AmplitudeIsTheQuotientOfBothMscales) {
  RopeConfig config = deepseek_v3();
  config.mscale = 1;
  config.mscale_all_dim = 0;
  EXPECT_NEAR(RopeTable::make(config, 64).amplitude, 0.1 * std::log(40.0) + 1, 1e-15);
}

PLAIT_TEST_BOTH_IMPLEMENTATIONS(Rope);

TEST_P(Rope, PairsAreNeighbours) {
  TestContext context(GetParam());
  const RopeTable table{.frequencies = {1.0, 0.5}, .amplitude = 1};
  std::vector<float> x = {1, 0, 0, 1};
  const int32_t position = 2;
  rope_interleaved(context, table, {&position, 1}, HeadRows{x.data(), 1, 1, 4, 4, 4});
  EXPECT_FLOAT_EQ(x[0], static_cast<float>(std::cos(2.0)));
  EXPECT_FLOAT_EQ(x[1], static_cast<float>(std::sin(2.0)));
  EXPECT_FLOAT_EQ(x[2], static_cast<float>(-std::sin(1.0)));
  EXPECT_FLOAT_EQ(x[3], static_cast<float>(std::cos(1.0)));
}

// Heads lie inside wider rows (the rotated part is the last of a query); what is beside them stays as it was.
TEST_P(Rope, FarPositionsAgainstDouble) {
  TestContext context(GetParam(), 3);
  const int64_t tokens = 5, heads = 3, head_stride = 75, nope = 7;
  const std::vector<int32_t> positions = {0, 1, 100003, 160000, 163839};
  int cases = 0;
  for (const int64_t width : {2, 6, 10, 32, 62, 64, 68}) {
    const RopeTable table = RopeTable::make(deepseek_v3(), width);
    const std::vector<float> before = random_values(tokens * heads * head_stride, 1);
    std::vector<float> after = before;
    rope_interleaved(context, table, positions,
                     HeadRows{after.data() + nope, tokens, heads, width, heads * head_stride, head_stride});
    for (int64_t row = 0; row < tokens * heads; ++row) {
      for (int64_t i = 0; i < head_stride; ++i) {
        const int64_t at = row * head_stride + i;
        if (i < nope || i >= nope + width) {
          ASSERT_EQ(after[at], before[at]);
          continue;
        }
        const int64_t pair = (i - nope) / 2, real = row * head_stride + nope + 2 * pair;
        const long double angle = static_cast<long double>(positions[row / heads]) * table.frequencies[pair];
        const long double cosine = std::cos(angle), sine = std::sin(angle);
        const long double expected = (i - nope) % 2 == 0 ? before[real] * cosine - before[real + 1] * sine
                                                         : before[real] * sine + before[real + 1] * cosine;
        ASSERT_NEAR(after[at], static_cast<double>(expected), 1e-6)
            << "width " << width << " position " << positions[row / heads] << " pair " << pair;
        ++cases;
      }
    }
  }
  std::printf("%d rotated numbers compared\n", cases);
}

TEST_P(Rope, NoRows) {
  TestContext context(GetParam());
  rope_interleaved(context, RopeTable::make(deepseek_v3(), 64), {}, HeadRows{nullptr, 0, 16, 64, 64, 64});
}

}  // namespace
}  // namespace plait::kernels
