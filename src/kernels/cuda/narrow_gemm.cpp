#include "kernels/cuda/narrow_gemm.h"

#include "base/assert.h"
#include "base/round.h"
#include "kernels/cuda/device_text.h"
#include "kernels/cuda/gemm_maps.h"
#include "kernels/cuda/wgmma_text.h"

namespace plait::cuda {
namespace {

constexpr int kStrip = 64;  // weight rows of a block, as in device/narrow_gemm.cu
constexpr int kNarrowThreads = 160;
constexpr int kMostSplit = 8;  // blocks of a cluster that every Hopper GPU can place

}  // namespace

Status validate(const GemmShape& shape, const NarrowGemmConfig& config) {
  PLAIT_RETURN_IF_ERROR(validate(shape, GemmConfig{}));
  if (shape.rows != GemmRows::kDense) return invalid("a narrow product has one weight matrix");
  if (config.tokens < 8 || config.tokens > 128 || config.tokens % 8 != 0)
    return invalid(fmt::format("tiles of {} tokens: multiples of 8 up to 128 are possible", config.tokens));
  const int64_t blocks_k = ceil_div(shape.k * element_bytes(shape.format), kBlockBytes);
  if (config.split < 1 || config.split > std::min<int64_t>(kMostSplit, blocks_k))
    return invalid(fmt::format("k = {} split into {} parts: {} are possible", shape.k, config.split,
                               std::min<int64_t>(kMostSplit, blocks_k)));
  if (config.stages < 2) return invalid(fmt::format("{} stages: at least 2", config.stages));
  if (const int64_t bytes = shared_bytes_of(shape, config); bytes > kMostSharedBytes)
    return invalid(fmt::format("{} tokens in {} stages take {} bytes of shared memory of {}", config.tokens,
                               config.stages, bytes, kMostSharedBytes));
  return {};
}

std::string name_of(const GemmShape& shape, const NarrowGemmConfig& config) {
  return fmt::format("{}_gemm_narrow{}_n{}_k{}_t{}p{}s{}", shape.format == GemmFormat::kFp8 ? "fp8" : "bf16",
                     shape.result == GemmResult::kF32 ? "_f32" : "", shape.n, shape.k, config.tokens, config.split,
                     config.stages);
}

// The size of Shared in device/narrow_gemm.cu, which asserts that it is this.
int64_t shared_bytes_of(const GemmShape& shape, const NarrowGemmConfig& config) {
  const bool fp8 = shape.format == GemmFormat::kFp8;
  const int64_t tiles = config.stages * (kStrip + config.tokens) * kBlockBytes;
  const int64_t partial = config.tokens * (kStrip + 4) * 4;
  const int64_t scales = config.stages * 4 * (fp8 ? round_up(config.tokens, 32) : 1);
  return round_up(round_up(round_up(tiles + partial, 128) + scales, 8) + config.stages * 16, 1024);
}

jit::KernelSource narrow_gemm_source(const GemmShape& shape, const NarrowGemmConfig& config) {
  PLAIT_ASSERT(!validate(shape, config).has_error(), "a product that cannot be");
  jit::KernelSource source;
  source.name = name_of(shape, config);
  source.entry = "narrow_gemm";
  source.constants = {{"ELEMENT_BYTES", element_bytes(shape.format)},
                      {"RESULT_BYTES", element_bytes(shape.result)},
                      {"N", shape.n},
                      {"K", shape.k},
                      {"TOKENS", config.tokens},
                      {"SPLIT", config.split},
                      {"STAGES", config.stages},
                      {"SHARED_BYTES", shared_bytes_of(shape, config)}};
  source.text = fmt::format("{}\n{}\n{}", kHopperText, multiply_text(shape.format, config.tokens), kNarrowGemmText);
  return source;
}

Result<NarrowGemm> NarrowGemm::load(const Device& device, const GemmShape& shape, const NarrowGemmConfig& config,
                                    const std::string& cubin) {
  PLAIT_RETURN_IF_ERROR(validate(shape, config));
  PLAIT_ASSIGN_OR_RETURN(LoadedKernel kernel, LoadedKernel::load(device, cubin, "narrow_gemm",
                                                                 static_cast<int>(shared_bytes_of(shape, config))));
  return NarrowGemm(device, shape, config, std::move(kernel));
}

Status NarrowGemm::launch(const GemmOperands& operands, const Stream& stream) const {
  if (operands.m == 0) return {};
  PLAIT_ASSIGN_OR_RETURN(GemmMaps maps,
                         gemm_maps(device_->driver(), shape_, operands,
                                   {.a_rows = config_.tokens, .b_rows = kStrip, .scale_rows = config_.tokens}));
  DevicePointer b_scales = operands.b_scales, d = operands.d;
  int m = static_cast<int>(operands.m);
  void* const arguments[] = {&maps.a, &maps.b, &maps.a_scales, &b_scales, &d, &m};
  return kernel_.launch({.x = static_cast<int>(ceil_div(shape_.n, kStrip)) * config_.split,
                         .y = static_cast<int>(ceil_div(operands.m, config_.tokens))},
                        kNarrowThreads, arguments, stream);
}

}  // namespace plait::cuda
