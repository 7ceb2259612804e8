// The products' kernels, compiled without a GPU.
#include <chrono>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "jit/nvrtc.h"
#include "kernels/cuda/gemm.h"

namespace plait::cuda {
namespace {

using ::testing::HasSubstr;

GemmShape shape_of(GemmRows rows, GemmFormat format, int64_t n, int64_t k) {
  return {.rows = rows, .format = format, .n = n, .k = k, .groups = rows == GemmRows::kDense ? 1 : 8};
}

TEST(GemmSource, ImpossibleOnesAreRefused) {
  const GemmShape shape = shape_of(GemmRows::kDense, GemmFormat::kFp8, 512, 512);
  const auto says = [](const GemmShape& shape, const GemmConfig& config) {
    return validate(shape, config).error().message;
  };
  EXPECT_FALSE(validate(shape, {}).has_error());
  EXPECT_THAT(says({.n = 12, .k = 512}, {}), HasSubstr("n = 12"));
  EXPECT_THAT(says({.n = 512, .k = 40}, {}), HasSubstr("k = 40"));
  EXPECT_THAT(says({.n = 512, .k = 512, .groups = 2}, {}), HasSubstr("dense product of 2 groups"));
  EXPECT_THAT(says(shape, {.block_m = 96}), HasSubstr("tiles of 96 rows"));
  EXPECT_THAT(says(shape, {.block_n = 24}), HasSubstr("tiles of 24 columns"));
  EXPECT_THAT(says(shape, {.stages = 9}), HasSubstr("shared memory"));
  EXPECT_THAT(says(shape_of(GemmRows::kMasked, GemmFormat::kFp8, 512, 512), {.share = GemmShare::kWeights}),
              HasSubstr("weights can only be shared in a dense product"));
}

// Registers that do not suffice would be spilled to memory, and products that the compiler orders one after the other
// would be remarked.
TEST(GemmSource, EveryFormCompilesWithoutSpillsOrRemarks) {
  auto compiler = jit::load_nvrtc();
  if (compiler.has_error()) GTEST_SKIP() << compiler.error().message;
  int kernels = 0;
  double total = 0, slowest = 0;
  for (const GemmRows rows : {GemmRows::kDense, GemmRows::kContiguous, GemmRows::kMasked})
    for (const GemmFormat format : {GemmFormat::kFp8, GemmFormat::kBf16})
      for (const GemmConfig& config :
           {GemmConfig{.block_m = 64, .block_n = 32, .stages = 8},
            GemmConfig{.block_m = 64, .block_n = 128, .stages = 6},
            GemmConfig{.block_m = 128, .block_n = 112, .stages = 5},
            GemmConfig{.block_m = 128, .block_n = 128, .stages = 5, .share = GemmShare::kRows},
            GemmConfig{.block_m = 128, .block_n = 160, .stages = 4, .share = GemmShare::kRows},
            GemmConfig{.block_m = 128, .block_n = 128, .stages = 5, .share = GemmShare::kWeights}}) {
        const GemmShape shape = shape_of(rows, format, 7168, 2048);
        if (config.share == GemmShare::kWeights && rows != GemmRows::kDense) continue;
        const auto begin = std::chrono::steady_clock::now();
        const auto kernel = compiler.value()->compile(gemm_source(shape, config));
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
        ASSERT_FALSE(kernel.has_error()) << kernel.error().message;
        ASSERT_TRUE(kernel.value().resources.has_value());
        EXPECT_EQ(kernel.value().resources->spill_store_bytes, 0) << name_of(shape, config);
        EXPECT_EQ(kernel.value().resources->stack_bytes, 0) << name_of(shape, config);
        EXPECT_EQ(kernel.value().remarks, "") << name_of(shape, config);
        ++kernels;
        total += took.count();
        slowest = std::max(slowest, took.count());
      }
  fmt::print("{} kernels for sm_90a: {:.3f} s each, slowest {:.3f} s\n", kernels, total / kernels, slowest);
}

}  // namespace
}  // namespace plait::cuda
