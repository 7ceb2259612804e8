#include "tensor/weight_source.h"

#include <cstring>
#include <random>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace plait {
namespace {

// `count` random elements of `dtype`, beginning at an odd address as they may in a file.
std::vector<std::byte> random_elements(DType dtype, int64_t count, std::mt19937& random) {
  std::vector<std::byte> bytes(1 + static_cast<size_t>(count * size_of(dtype)));
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < count; ++i) {
    const float value = normal(random);
    std::byte* out = bytes.data() + 1 + i * size_of(dtype);
    const uint16_t narrow = dtype == DType::kF16 ? float_to_half(value) : BFloat16(value).bits;
    if (dtype == DType::kF32) std::memcpy(out, &value, 4);
    if (dtype == DType::kBF16 || dtype == DType::kF16) std::memcpy(out, &narrow, 2);
    if (dtype == DType::kF8E4M3) *out = static_cast<std::byte>(float_to_e4m3(100 * value));
  }
  return bytes;
}

TEST(WeightSource, RowsAreTheSameAsTheirElements) {
  std::mt19937 random(1);
  int rows_tried = 0;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3}) {
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {3, 127}, {129, 128}, {5, 257}}) {
      const int64_t scale_cols = (cols + 127) / 128;
      const auto data = random_elements(dtype, rows * cols, random);
      const auto scales = random_elements(DType::kF32, (rows + 127) / 128 * scale_cols, random);
      for (const bool scaled : {false, true}) {
        WeightSource source{dtype, rows, cols, data.data() + 1};
        if (scaled) source.scales = scales.data() + 1, source.block = 128;
        EXPECT_EQ(source.size_bytes(), static_cast<size_t>(rows * cols * size_of(dtype)));
        std::vector<float> row(static_cast<size_t>(cols));
        for (int64_t i = 0; i < rows; ++i, ++rows_tried) {
          source.decode_row(i, row.data());
          for (int64_t j = 0; j < cols; ++j) ASSERT_EQ(row[static_cast<size_t>(j)], source.at(i, j)) << i << ", " << j;
        }
      }
    }
  }
  fmt::print("{} rows decoded\n", rows_tried);
}

TEST(WeightSource, ElementsAreValueTimesTheirBlocksScale) {
  // [3, 5] in blocks of 2: scales [2, 3] = 1, 2, 4 / 8, 16, 32; every value is 1.5 (0x3c).
  const std::vector<std::byte> data(15, std::byte{0x3c});
  const float scales[] = {1, 2, 4, 8, 16, 32};
  const WeightSource source{DType::kF8E4M3, 3, 5, data.data(), reinterpret_cast<const std::byte*>(scales), 2};
  const float expected[3][5] = {{1, 1, 2, 2, 4}, {1, 1, 2, 2, 4}, {8, 8, 16, 16, 32}};
  float row[5];
  for (int64_t i = 0; i < 3; ++i) {
    source.decode_row(i, row);
    for (int64_t j = 0; j < 5; ++j) {
      EXPECT_EQ(source.at(i, j), 1.5F * expected[i][j]);
      EXPECT_EQ(row[j], 1.5F * expected[i][j]);
    }
  }
}

TEST(WeightSource, RectanglesAreTheSameAsTheirPlace) {
  std::mt19937 random(2);
  const int64_t rows = 300, cols = 290;
  const auto scales = random_elements(DType::kF32, 3 * 3, random);
  int64_t elements = 0;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3}) {
    const auto data = random_elements(dtype, rows * cols, random);
    WeightSource whole{dtype, rows, cols, data.data() + 1};
    if (dtype == DType::kF8E4M3) whole.scales = scales.data() + 1, whole.block = 128;
    for (int round = 0; round < 20; ++round) {
      const auto draw = [&](int64_t limit) { return static_cast<int64_t>(random() % static_cast<uint64_t>(limit)); };
      const int64_t row = draw(rows), col = draw(cols);
      const WeightSource part = whole.slice(row, 1 + draw(rows - row), col, 1 + draw(cols - col));
      const int64_t inner_row = draw(part.rows), inner_col = draw(part.cols);  // a rectangle of a rectangle
      const WeightSource inner = part.slice(inner_row, part.rows - inner_row, inner_col, part.cols - inner_col);
      std::vector<float> decoded(static_cast<size_t>(inner.cols));
      for (int64_t i = 0; i < inner.rows; i += 1 + inner.rows / 9) {
        inner.decode_row(i, decoded.data());
        for (int64_t j = 0; j < inner.cols; ++j, ++elements) {
          const float expected = whole.at(row + inner_row + i, col + inner_col + j);
          ASSERT_EQ(inner.at(i, j), expected);
          ASSERT_EQ(decoded[static_cast<size_t>(j)], expected);
        }
      }
    }
  }
  fmt::print("{} elements compared\n", elements);
}

}  // namespace
}  // namespace plait
