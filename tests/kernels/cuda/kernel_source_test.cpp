// The kernels of products and of quantising, compiled without a GPU.
#include <chrono>
#include <cstdlib>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "jit/nvrtc.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/narrow_gemm.h"
#include "kernels/cuda/quantize.h"

namespace plait::cuda {
namespace {

using ::testing::HasSubstr;

GemmShape shape_of(GemmRows rows, GemmFormat format, int64_t n, int64_t k, GemmResult result = GemmResult::kBf16) {
  return {.rows = rows, .format = format, .n = n, .k = k, .groups = rows == GemmRows::kDense ? 1 : 8, .result = result};
}

TEST(GemmSource, ImpossibleOnesAreRefused) {
  const GemmShape shape = shape_of(GemmRows::kDense, GemmFormat::kFp8, 512, 512);
  const auto says = [](const GemmShape& shape, const GemmConfig& config) {
    return validate(shape, config).error().message;
  };
  EXPECT_FALSE(validate(shape, GemmConfig{}).has_error());
  EXPECT_THAT(says({.n = 12, .k = 512}, GemmConfig{}), HasSubstr("n = 12"));
  EXPECT_THAT(says({.n = 512, .k = 40}, GemmConfig{}), HasSubstr("k = 40"));
  EXPECT_THAT(says({.n = 512, .k = 512, .groups = 2}, GemmConfig{}), HasSubstr("dense product of 2 groups"));
  EXPECT_THAT(
      says({.rows = GemmRows::kBatched, .format = GemmFormat::kBf16, .n = 512, .k = 96, .groups = 2}, GemmConfig{}),
      HasSubstr("batched product with k = 96"));
  EXPECT_THAT(says(shape_of(GemmRows::kBatched, GemmFormat::kFp8, 512, 128), GemmConfig{}),
              HasSubstr("it must be of bfloat16"));
  EXPECT_THAT(says(shape, {.block_m = 96}), HasSubstr("tiles of 96 rows"));
  EXPECT_THAT(says(shape, {.block_n = 24}), HasSubstr("tiles of 24 columns"));
  EXPECT_THAT(says(shape, {.stages = 9}), HasSubstr("shared memory"));
  EXPECT_THAT(says(shape_of(GemmRows::kMasked, GemmFormat::kFp8, 512, 512), {.share = GemmShare::kWeights}),
              HasSubstr("weights can only be shared in a dense product"));
}

// Compiles for sm_90a; registers that do not suffice would be spilled to memory, and products that the compiler orders
// one after the other would be remarked.
class CudaKernels : public ::testing::Test {
 protected:
  void SetUp() override {
    auto compiler = jit::load_nvrtc();
    if (compiler.has_error()) {
      ASSERT_EQ(std::getenv("PLAIT_REQUIRE_NVRTC"), nullptr) << compiler.error().message;
      GTEST_SKIP() << "SKIPPED: " << compiler.error().message;
    }
    compiler_ = std::move(compiler).value();
  }
  void TearDown() override {
    if (kernels_ > 0)
      fmt::print("{} kernels: {:.3f} s each, slowest {:.3f} s\n", kernels_, total_ / kernels_, slowest_);
  }
  void compile(const jit::KernelSource& source) {
    SCOPED_TRACE(source.name);
    const auto begin = std::chrono::steady_clock::now();
    const auto kernel = compiler_->compile(source);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    ASSERT_FALSE(kernel.has_error()) << kernel.error().message;
    ASSERT_TRUE(kernel.value().resources.has_value());
    EXPECT_EQ(kernel.value().resources->spill_store_bytes, 0);
    EXPECT_EQ(kernel.value().resources->stack_bytes, 0);
    EXPECT_EQ(kernel.value().remarks, "");
    ++kernels_;
    total_ += took.count();
    slowest_ = std::max(slowest_, took.count());
  }

  std::unique_ptr<jit::Compiler> compiler_;
  int kernels_ = 0;
  double total_ = 0, slowest_ = 0;
};

TEST_F(CudaKernels, CompileWithoutSpillsOrRemarks) {
  const GemmConfig configs[] = {{.block_m = 64, .block_n = 32, .stages = 8},
                                {.block_m = 64, .block_n = 128, .stages = 6},
                                {.block_m = 128, .block_n = 112, .stages = 5},
                                {.block_m = 128, .block_n = 128, .stages = 5, .share = GemmShare::kRows},
                                {.block_m = 128, .block_n = 160, .stages = 4, .share = GemmShare::kRows},
                                {.block_m = 128, .block_n = 128, .stages = 5, .share = GemmShare::kWeights}};
  for (const GemmRows rows : {GemmRows::kDense, GemmRows::kContiguous, GemmRows::kMasked})
    for (const GemmFormat format : {GemmFormat::kFp8, GemmFormat::kBf16})
      for (const GemmResult result : {GemmResult::kBf16, GemmResult::kF32})
        for (const GemmConfig& config : configs) {
          const GemmShape shape = shape_of(rows, format, 7168, 2048, result);
          if (result == GemmResult::kF32 && rows != GemmRows::kDense) continue;  // written the same way in all forms
          if (!validate(shape, config).has_error()) compile(gemm_source(shape, config));
        }
  EXPECT_EQ(kernels_, 3 * 2 * 6 - 4 + 2 * 6) << "weights are only shared in dense products";
}

TEST_F(CudaKernels, BatchedOnesCompileWithoutSpillsOrRemarks) {
  for (const auto& [n, k] : {std::pair{512, 128}, {128, 512}})
    for (const GemmConfig& config : {GemmConfig{.block_m = 64, .block_n = 128, .stages = 4},
                                     GemmConfig{.block_m = 128, .block_n = 128, .stages = 4}})
      compile(gemm_source(shape_of(GemmRows::kBatched, GemmFormat::kBf16, n, k), config));
}

TEST_F(CudaKernels, NarrowOnesCompileWithoutSpillsOrRemarks) {
  for (const GemmFormat format : {GemmFormat::kFp8, GemmFormat::kBf16})
    for (const GemmResult result : {GemmResult::kBf16, GemmResult::kF32})
      for (const NarrowGemmConfig& config : {NarrowGemmConfig{.tokens = 8, .split = 1, .stages = 8},
                                             NarrowGemmConfig{.tokens = 16, .split = 8, .stages = 6},
                                             NarrowGemmConfig{.tokens = 64, .split = 3, .stages = 4}})
        compile(narrow_gemm_source(shape_of(GemmRows::kDense, format, 7168, 2048, result), config));
}

TEST_F(CudaKernels, QuantizersCompileWithoutSpillsOrRemarks) {
  for (const bool gated : {false, true})
    for (const bool power_of_two : {false, true})
      for (const int groups : {0, 32})
        compile(quantize_source({.k = 7168, .gated = gated, .power_of_two = power_of_two, .groups = groups}));
}

}  // namespace
}  // namespace plait::cuda
