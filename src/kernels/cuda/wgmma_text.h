// The one instruction that no template can write, since it has as many operands as a tile has columns.
#pragma once

#include <string>

#include "kernels/cuda/gemm.h"

namespace plait::cuda {

// multiply(d, a, b, add): d (+)= a * b for tiles of 64 rows and `columns`, 128 / 4 bytes of k. For the front of a
// kernel's text, behind kHopperText.
std::string multiply_text(GemmFormat format, int columns);

}  // namespace plait::cuda
