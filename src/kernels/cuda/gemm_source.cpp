#include "base/assert.h"
#include "base/round.h"
#include "kernels/cuda/device_text.h"
#include "kernels/cuda/gemm_maps.h"
#include "kernels/cuda/wgmma_text.h"

namespace plait::cuda {
namespace {

const char* name_of(GemmRows rows) {
  switch (rows) {
    case GemmRows::kDense:
      return "dense";
    case GemmRows::kContiguous:
      return "contiguous";
    case GemmRows::kMasked:
      return "masked";
    case GemmRows::kBatched:
      return "batched";
  }
  return "";
}

const char* suffix_of(GemmShare share) {
  switch (share) {
    case GemmShare::kNothing:
      return "";
    case GemmShare::kRows:
      return "r";
    case GemmShare::kWeights:
      return "w";
  }
  return "";
}

}  // namespace

int64_t element_bytes(GemmFormat format) {
  return format == GemmFormat::kFp8 ? 1 : 2;
}

int64_t element_bytes(GemmResult result) {
  return result == GemmResult::kF32 ? 4 : 2;
}

Status validate(const GemmShape& shape, const GemmConfig& config) {
  const int64_t k_multiple = 16 / element_bytes(shape.format);
  if (shape.n <= 0 || shape.n % 8 != 0)
    return invalid(fmt::format("a product with n = {}: n must be a positive multiple of 8", shape.n));
  if (shape.k <= 0 || shape.k % k_multiple != 0)
    return invalid(fmt::format("a product with k = {}: k must be a positive multiple of {}", shape.k, k_multiple));
  if (shape.groups < 1 || (shape.rows == GemmRows::kDense && shape.groups != 1))
    return invalid(fmt::format("a {} product of {} groups", name_of(shape.rows), shape.groups));
  // The copy engine brings 128 bytes of a row at a time: never of two groups.
  if (shape.rows == GemmRows::kBatched && (shape.format != GemmFormat::kBf16 || shape.k % 64 != 0))
    return invalid(fmt::format("a batched product with k = {}: it must be of bfloat16, k a multiple of 64", shape.k));
  if (config.block_m != 64 && config.block_m != 128)
    return invalid(fmt::format("tiles of {} rows: 64 and 128 are possible", config.block_m));
  if (config.block_n < 16 || config.block_n > 256 || config.block_n % 16 != 0)
    return invalid(fmt::format("tiles of {} columns: multiples of 16 up to 256 are possible", config.block_n));
  if (config.share == GemmShare::kWeights && shape.rows != GemmRows::kDense)
    return invalid("weights can only be shared in a dense product: tiles below each other may be of two groups");
  if (config.waves < 1 || config.block_n % (16 * config.waves) != 0 ||
      (config.waves > 1 && shape.format != GemmFormat::kFp8))
    return invalid(fmt::format("tiles of {} columns in {} waves", config.block_n, config.waves));
  if (config.stages < 2 || config.band < 1)
    return invalid(fmt::format("{} stages and bands of {}: at least 2 and 1", config.stages, config.band));
  if (const int64_t bytes = shared_bytes_of(shape, config); bytes > kMostSharedBytes)
    return invalid(fmt::format("tiles of {} x {} in {} stages take {} bytes of shared memory of {}", config.block_m,
                               config.block_n, config.stages, bytes, kMostSharedBytes));
  return {};
}

std::string name_of(const GemmShape& shape, const GemmConfig& config) {
  return fmt::format("{}_gemm_{}{}_n{}_k{}_g{}_m{}n{}w{}s{}b{}{}", shape.format == GemmFormat::kFp8 ? "fp8" : "bf16",
                     name_of(shape.rows), shape.result == GemmResult::kF32 ? "_f32" : "", shape.n, shape.k,
                     shape.groups, config.block_m, config.block_n, config.waves, config.stages, config.band,
                     suffix_of(config.share));
}

int threads_of(const GemmConfig& config) {
  return 128 * (config.block_m / 64 + 1);
}

int cluster_of(const GemmConfig& config) {
  return config.share == GemmShare::kNothing ? 1 : 2;
}

// The size of Shared in device/gemm.cu, which asserts that it is this.
int64_t shared_bytes_of(const GemmShape& shape, const GemmConfig& config) {
  const int64_t tiles = (config.block_m + config.block_n) * kBlockBytes;
  const int64_t scales = (shape.format == GemmFormat::kFp8 ? config.block_m : 1) * 4 + 8;
  const int64_t stage = round_up(round_up(tiles + scales, 8) + 16, 1024);
  const int64_t result = element_bytes(shape.result);
  const int64_t results = config.block_m * (std::min<int64_t>(config.block_n * result, 128) + 8 * result);
  return round_up(config.stages * stage + results, 1024);
}

jit::KernelSource gemm_source(const GemmShape& shape, const GemmConfig& config) {
  PLAIT_ASSERT(!validate(shape, config).has_error(), "a product that cannot be");
  jit::KernelSource source;
  source.name = name_of(shape, config);
  source.entry = "gemm";
  source.constants = {{"ROWS", static_cast<int>(shape.rows)},
                      {"ELEMENT_BYTES", element_bytes(shape.format)},
                      {"RESULT_BYTES", element_bytes(shape.result)},
                      {"N", shape.n},
                      {"K", shape.k},
                      {"GROUPS", shape.groups},
                      {"BLOCK_M", config.block_m},
                      {"BLOCK_N", config.block_n},
                      {"STAGES", config.stages},
                      {"WAVE_N", config.block_n / config.waves},
                      {"SHARE", static_cast<int>(config.share)},
                      {"BAND", config.band},
                      {"SHARED_BYTES", shared_bytes_of(shape, config)}};
  source.text =
      fmt::format("{}\n{}\n{}", kHopperText, multiply_text(shape.format, config.block_n / config.waves), kGemmText);
  return source;
}

}  // namespace plait::cuda
