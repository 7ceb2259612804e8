// Products of few rows of tokens with one weight matrix: the weights are read once, and that is what takes the time.
// Same operands and arithmetic as a dense product in gemm.h; another kernel (device/narrow_gemm.cu).
#pragma once

#include "kernels/cuda/gemm.h"

namespace plait::cuda {

struct NarrowGemmConfig {
  int tokens = 8;  // rows of a tile, a multiple of 8 up to 128; more rows take more passes over the weights
  int split = 1;   // blocks that share a strip of 64 weight rows, each along its part of k: 1 to 8
  int stages = 6;

  bool operator==(const NarrowGemmConfig&) const = default;
};

// kInvalid: says which number cannot be.
Status validate(const GemmShape& shape, const NarrowGemmConfig& config);
std::string name_of(const GemmShape& shape, const NarrowGemmConfig& config);
int64_t shared_bytes_of(const GemmShape& shape, const NarrowGemmConfig& config);
// For a valid shape and configuration.
jit::KernelSource narrow_gemm_source(const GemmShape& shape, const NarrowGemmConfig& config);

class NarrowGemm {
 public:
  // `cubin`: of narrow_gemm_source(shape, config).
  static Result<NarrowGemm> load(const Device& device, const GemmShape& shape, const NarrowGemmConfig& config,
                                 const std::string& cubin);
  // kInvalid: an operand that is not aligned to 16 bytes. Returns before the product is done.
  Status launch(const GemmOperands& operands, const Stream& stream) const;

 private:
  NarrowGemm(const Device& device, const GemmShape& shape, const NarrowGemmConfig& config, LoadedKernel kernel)
      : device_(&device), shape_(shape), config_(config), kernel_(std::move(kernel)) {}

  const Device* device_;
  GemmShape shape_;
  NarrowGemmConfig config_;
  LoadedKernel kernel_;
};

}  // namespace plait::cuda
