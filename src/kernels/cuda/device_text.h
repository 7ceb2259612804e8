// The text of device/*.cu, which is compiled while plait runs: header-free CUDA C++, put together in front of a kernel
// in the order in which it is needed.
#pragma once

#include <string_view>

namespace plait::cuda {

extern const std::string_view kHopperText;      // device/hopper.cu: Hopper's instructions
extern const std::string_view kGemmText;        // device/gemm.cu
extern const std::string_view kNarrowGemmText;  // device/narrow_gemm.cu
extern const std::string_view kQuantizeText;    // device/quantize.cu

}  // namespace plait::cuda
