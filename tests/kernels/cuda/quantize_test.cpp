// Quantised rows on a GPU, against the formula on the CPU.
#include "kernels/cuda/quantize.h"

#include <cmath>
#include <random>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include "tensor/dtype.h"
#include "tests/kernels/cuda/gpu_test.h"

namespace plait::cuda::testing {
namespace {

constexpr uint8_t kPoison = 0xff;  // a NaN in e4m3 and in float32

class QuantizeTest : public GpuTest {
 protected:
  struct Data {
    std::vector<BFloat16> x;
    std::vector<uint8_t> q;
    std::vector<float> scales;
  };

  // Numbers of very different sizes, and now and then only zeros.
  Data random_data(const QuantizeShape& shape, int64_t rows, int64_t scale_rows) {
    Data data;
    std::normal_distribution<float> any(0, 1);
    const int64_t width = shape.gated ? 2 * shape.k : shape.k;
    for (int64_t row = 0; row < rows; ++row) {
      const float size = random_() % 13 == 0 ? 0.0F : std::ldexp(1.0F, static_cast<int>(random_() % 12) - 6);
      for (int64_t i = 0; i < width; ++i) data.x.emplace_back(size * any(random_));
    }
    data.q.resize(static_cast<size_t>(rows * shape.k));
    data.scales.resize(static_cast<size_t>((shape.k + 127) / 128 * scale_rows * std::max(shape.groups, 1)));
    return data;
  }

  void run(const QuantizeShape& shape, const std::vector<int32_t>& counts, int64_t m) {
    SCOPED_TRACE(fmt::format("{} with rows {}", name_of(shape), fmt::join(counts, ",")));
    const int64_t rows = m * std::max(shape.groups, 1), scale_rows = (m + 3) / 4 * 4;
    Data data = random_data(shape, rows, scale_rows);
    const auto kernel = Quantize::load(device(), shape, cubin_of(quantize_source(shape)));
    ASSERT_FALSE(kernel.has_error()) << kernel.error().message;
    DeviceBuffer x = on_device(data.x), row_counts = on_device(counts);
    DeviceBuffer q = on_device(data.q), scales = on_device(data.scales);
    ok(q.fill(kPoison, stream()));
    ok(scales.fill(kPoison, stream()));
    ok(kernel.value().launch({.x = x.pointer(),
                              .q = q.pointer(),
                              .scales = scales.pointer(),
                              .scale_rows = scale_rows,
                              .m = m,
                              .row_counts = row_counts.pointer()},
                             stream()));
    ok(q.read(data.q.data(), data.q.size(), stream()));
    ok(scales.read(data.scales.data(), data.scales.size() * sizeof(float), stream()));
    ok(stream().wait());
    for (int64_t row = 0; row < rows; ++row)
      check_row(shape, data, row, row % m < counts[static_cast<size_t>(row / m)], m, scale_rows);
  }

  void check_row(const QuantizeShape& shape, const Data& data, int64_t row, bool exists, int64_t m,
                 int64_t scale_rows) {
    const int64_t blocks = (shape.k + 127) / 128;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t end = std::min<int64_t>(shape.k, block * 128 + 128);
      const float scale = data.scales[static_cast<size_t>((row / m * blocks + block) * scale_rows + row % m)];
      if (!exists) {
        ASSERT_TRUE(std::isnan(scale)) << "the scale of row " << row << " was written, and it does not exist";
        for (int64_t i = block * 128; i < end; ++i)
          ASSERT_EQ(data.q[static_cast<size_t>(row * shape.k + i)], kPoison) << "row " << row << " column " << i;
        continue;
      }
      float largest = 0;
      std::vector<float> values;
      for (int64_t i = block * 128; i < end; ++i) {
        values.push_back(value_at(shape, data, row, i));
        largest = std::max(largest, std::abs(values.back()));
      }
      float expected = std::max(largest, 1e-4F) / 448;
      if (shape.power_of_two) expected = std::exp2(std::ceil(std::log2(expected)));
      // The exponential of the GPU is not that of the CPU.
      const float slack = shape.gated ? 1e-5F : 0;
      // At a power of two either of its neighbours may be meant.
      const bool exact = !shape.power_of_two || !shape.gated;
      ASSERT_LE(std::abs(scale - expected), (exact ? slack : 1) * expected) << "row " << row;
      for (int64_t i = block * 128; i < end; ++i) {
        const uint8_t is = data.q[static_cast<size_t>(row * shape.k + i)];
        const float value = values[static_cast<size_t>(i - block * 128)] * (1 / scale);
        if (!shape.gated) {
          ASSERT_EQ(is, float_to_e4m3(value)) << "row " << row << " column " << i;
        } else {
          ASSERT_LE(std::abs(e4m3_to_float(is) - value), std::abs(value) / 16 * 1.001F + std::ldexp(1.0F, -10))
              << "row " << row << " column " << i;
        }
        ++numbers_;
      }
    }
  }

  static float value_at(const QuantizeShape& shape, const Data& data, int64_t row, int64_t i) {
    if (!shape.gated) return static_cast<float>(data.x[static_cast<size_t>(row * shape.k + i)]);
    const auto gate = static_cast<float>(data.x[static_cast<size_t>(row * 2 * shape.k + i)]);
    const auto up = static_cast<float>(data.x[static_cast<size_t>(row * 2 * shape.k + shape.k + i)]);
    return gate / (1 + std::exp(-gate)) * up;
  }

  std::mt19937 random_{3};
  int64_t numbers_ = 0;
};

TEST_F(QuantizeTest, IsTheFormulaAndTouchesNothingElse) {
  int64_t shapes = 0;
  for (const bool gated : {false, true})
    for (const bool power_of_two : {false, true})
      for (const int64_t k : {8, 128, 576, 2048, 7168}) {
        for (const int64_t m : {1, 15, 16, 129}) {
          run({.k = k, .gated = gated, .power_of_two = power_of_two}, {static_cast<int32_t>(m)}, m);
          ++shapes;
        }
        run({.k = k, .gated = gated, .power_of_two = power_of_two, .groups = 5}, {0, 1, 40, 17, 0}, 40);
        ++shapes;
      }
  fmt::print("{} shapes quantised, {} numbers\n", shapes, numbers_);
}

}  // namespace
}  // namespace plait::cuda::testing
