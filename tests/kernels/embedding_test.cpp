#include "kernels/embedding.h"

#include "tests/kernels/implementations.h"

namespace plait::kernels {
namespace {

PLAIT_TEST_BOTH_IMPLEMENTATIONS(Embedding);

TEST_P(Embedding, RowsOfBothTypes) {
  int rows = 0;
  for (const int64_t width : {1, 5, 16, 50, 2048}) {
    const int64_t vocab = 9;
    const std::vector<float> table = random_values(vocab * width, 1);
    std::vector<BFloat16> rounded;
    for (const float value : table) rounded.emplace_back(value);
    const std::vector<int32_t> ids = {8, 0, 3, 3, 7};
    TestContext context(GetParam(), 2);
    std::vector<float> y(ids.size() * width, std::numeric_limits<float>::quiet_NaN()), z = y;
    embed(context, {table.data(), DType::kF32, 0, vocab}, ids, Rows(y.data(), std::ssize(ids), width));
    embed(context, {rounded.data(), DType::kBF16, 0, vocab}, ids, Rows(z.data(), std::ssize(ids), width));
    for (size_t i = 0; i < ids.size(); ++i, ++rows)
      for (int64_t j = 0; j < width; ++j) {
        ASSERT_EQ(y[i * width + j], table[ids[i] * width + j]);
        ASSERT_EQ(z[i * width + j], static_cast<float>(rounded[ids[i] * width + j]));
      }
  }
  std::printf("%d rows compared\n", rows);
}

TEST_P(Embedding, PartsOfTheVocabularyAddUp) {
  const int64_t vocab = 11, width = 37;
  const std::vector<float> table = random_values(vocab * width, 2);
  const std::vector<int32_t> ids = {10, 0, 4, 5, 4};
  TestContext context(GetParam(), 2);
  std::vector<float> sum(ids.size() * width, 0.0f);
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 4}, {4, 1}, {5, 6}}) {
    std::vector<float> part(sum.size(), std::numeric_limits<float>::quiet_NaN());
    embed(context, {table.data() + first * width, DType::kF32, first, count}, ids,
          Rows(part.data(), std::ssize(ids), width));
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
  }
  for (size_t i = 0; i < ids.size(); ++i)
    for (int64_t j = 0; j < width; ++j) ASSERT_EQ(sum[i * width + j], table[ids[i] * width + j]);
}

TEST_P(Embedding, NoRows) {
  TestContext context(GetParam());
  embed(context, {}, {}, Rows(nullptr, 0, 64));
}

}  // namespace
}  // namespace plait::kernels
