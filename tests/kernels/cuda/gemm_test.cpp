// The products on a GPU, against sums in double precision.
#include <cmath>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/cuda/narrow_gemm.h"
#include "tensor/dtype.h"
#include "tests/kernels/cuda/gemm_problem.h"
#include "tests/kernels/cuda/gpu_test.h"

namespace plait::cuda::testing {
namespace {

constexpr uint8_t kPoison = 0xa5;         // of every byte of the results
constexpr uint16_t kPoisonWord = 0xa5a5;  // a number that no sum here comes near to
constexpr int64_t kSamples = 3000;        // results that are compared in a large problem
constexpr double kAllBelow = 5e7;         // multiply-adds of a problem whose results are all compared

class GemmTest : public GpuTest {
 protected:
  // Results that were compared.
  int64_t check(const GemmProblem& problem, const GemmConfig& config) {
    return check<Gemm>(problem, config, gemm_source(problem.shape, config), config.block_m);
  }
  int64_t check(const GemmProblem& problem, const NarrowGemmConfig& config) {
    return check<NarrowGemm>(problem, config, narrow_gemm_source(problem.shape, config), 1);
  }
  template <typename Kernel, typename Config>
  int64_t check(const GemmProblem& problem, const Config& config, const jit::KernelSource& source, int64_t block_m) {
    SCOPED_TRACE(fmt::format("{} with rows {}", source.name, fmt::join(problem.counts, ",")));
    const GemmData data(problem, block_m, ++seed_);
    auto gemm = Kernel::load(device(), problem.shape, config, cubin_of(source));
    EXPECT_FALSE(gemm.has_error()) << gemm.error().message;
    auto on = GemmOnDevice::make(device(), stream(), data);
    EXPECT_FALSE(on.has_error()) << on.error().message;
    std::vector<uint16_t> d(static_cast<size_t>(data.rows * problem.shape.n));
    const auto run = [&]() -> Status {
      PLAIT_RETURN_IF_ERROR(on.value().d.fill(kPoison, stream()));
      PLAIT_RETURN_IF_ERROR(gemm.value().launch(on.value().operands, stream()));
      PLAIT_RETURN_IF_ERROR(on.value().d.read(d.data(), d.size() * 2, stream()));
      return stream().wait();
    };
    if (const Status status = run(); status.has_error()) {
      ADD_FAILURE() << status.error().message;
      return 0;
    }
    return compare(data, d);
  }
  static int64_t compare(const GemmData& data, const std::vector<uint16_t>& d) {
    const GemmShape& shape = data.problem.shape;
    for (int64_t i = 0; i < data.rows * shape.n; ++i) {
      const bool exists = data.group_of(i / shape.n) >= 0;
      if ((d[static_cast<size_t>(i)] == kPoisonWord) == exists) {
        ADD_FAILURE() << fmt::format("row {} column {} {}", i / shape.n, i % shape.n,
                                     exists ? "was not written" : "was written, and does not exist");
        return 0;
      }
    }
    const double work = static_cast<double>(data.rows * shape.n) * static_cast<double>(shape.k);
    const int64_t stride = work < kAllBelow ? 1 : std::max<int64_t>(data.rows * shape.n / kSamples, 1) | 1;
    int64_t compared = 0, wrong = 0;
    for (int64_t i = 0; i < data.rows * shape.n; i += stride) {
      const int64_t row = i / shape.n, n = i % shape.n, group = data.group_of(row);
      if (group < 0) continue;
      double sum = 0, size = 0;
      for (int64_t k = 0; k < shape.k; ++k) {
        const double product = data.a_at(row, k) * data.b_at(group, n, k);
        sum += product;
        size += std::abs(product);
      }
      BFloat16 result;
      result.bits = d[static_cast<size_t>(i)];
      const double error = std::abs(static_cast<double>(static_cast<float>(result)) - sum);
      // Rounding of the result, and of sums of 128 products in the tensor cores, which keep at least 13 bits.
      const double bound =
          std::ldexp(std::abs(sum), -8) + std::ldexp(size, shape.format == GemmFormat::kFp8 ? -12 : -20);
      ++compared;
      if (error <= bound) continue;
      if (++wrong <= 5)
        ADD_FAILURE() << fmt::format("row {} column {}: {} instead of {}, {} allowed", row, n,
                                     static_cast<float>(result), sum, bound);
    }
    EXPECT_EQ(wrong, 0) << "of " << compared;
    return compared;
  }

  uint32_t seed_ = 0;
};

const GemmConfig kConfigs[] = {
    {.block_m = 64, .block_n = 32, .stages = 8},
    {.block_m = 64, .block_n = 64, .stages = 8},
    {.block_m = 64, .block_n = 128, .stages = 6},
    {.block_m = 128, .block_n = 112, .stages = 5, .band = 4},
    {.block_m = 128, .block_n = 128, .stages = 5, .share = GemmShare::kRows},
    {.block_m = 128, .block_n = 160, .stages = 4, .share = GemmShare::kRows, .band = 1},
    {.block_m = 128, .block_n = 128, .stages = 5, .share = GemmShare::kWeights},
    {.block_m = 128, .block_n = 192, .stages = 4},
    {.block_m = 128, .block_n = 256, .stages = 4, .waves = 2},
};

// Sums of BF16 products need no scaling, so they stay where the tensor cores have them: one wave.
std::vector<GemmConfig> configs_of(GemmFormat format) {
  std::vector<GemmConfig> configs(std::begin(kConfigs), std::end(kConfigs));
  if (format == GemmFormat::kBf16)
    for (GemmConfig& config : configs) config.waves = 1;
  return configs;
}

TEST_F(GemmTest, DenseIsRightForEveryShape) {
  int64_t problems = 0, results = 0;
  for (const GemmFormat format : {GemmFormat::kFp8, GemmFormat::kBf16})
    for (const GemmConfig& config : configs_of(format))
      for (const auto& [n, k] : {std::pair{8, 16}, {24, 128}, {576, 592}, {2112, 2048}, {4096, 576}})
        for (const int64_t m : {1, 7, 64, 65, 129, 300, 1000}) {
          results += check({.shape = {.format = format, .n = n, .k = k}, .counts = {m}}, config);
          ++problems;
        }
  fmt::print("{} dense products, {} results\n", problems, results);
}

TEST_F(GemmTest, NarrowIsRightForEveryShape) {
  int64_t problems = 0, results = 0;
  for (const GemmFormat format : {GemmFormat::kFp8, GemmFormat::kBf16})
    for (const NarrowGemmConfig& config : {NarrowGemmConfig{.tokens = 8, .split = 1, .stages = 8},
                                           NarrowGemmConfig{.tokens = 16, .split = 4, .stages = 6},
                                           NarrowGemmConfig{.tokens = 64, .split = 3, .stages = 4},
                                           NarrowGemmConfig{.tokens = 128, .split = 8, .stages = 3}})
      for (const auto& [n, k] : {std::pair{8, 1024}, {24, 1168}, {576, 7168}, {2112, 2048}, {4096, 1040}})
        for (const int64_t m : {1, 7, 8, 9, 64, 130}) {
          results += check({.shape = {.format = format, .n = n, .k = k}, .counts = {m}}, config);
          ++problems;
        }
  fmt::print("{} narrow products, {} results\n", problems, results);
}

TEST_F(GemmTest, GroupsAreRightAndNothingElseIsTouched) {
  int64_t problems = 0, results = 0;
  const std::vector<int64_t> loads[] = {
      {0, 0, 0, 0}, {1, 0, 0, 0}, {0, 64, 128, 1}, {129, 0, 300, 7}, {33, 65, 127, 255}};
  for (const GemmRows rows : {GemmRows::kContiguous, GemmRows::kMasked})
    for (const GemmFormat format : {GemmFormat::kFp8, GemmFormat::kBf16})
      for (const GemmConfig& config : configs_of(format))
        for (const auto& [n, k] : {std::pair{24, 144}, {576, 2048}, {2048, 512}})
          for (const std::vector<int64_t>& counts : loads) {
            if (config.share == GemmShare::kWeights) continue;
            results += check(
                {.shape = {.rows = rows, .format = format, .n = n, .k = k, .groups = 4}, .counts = counts, .room = 320},
                config);
            ++problems;
          }
  fmt::print("{} grouped products, {} results\n", problems, results);
}

}  // namespace
}  // namespace plait::cuda::testing
