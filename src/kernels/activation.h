// SwiGLU: y = silu(gate) * up.
#pragma once

#include "kernels/context.h"
#include "tensor/matrix.h"

namespace plait::kernels {

// gate_up: [tokens, 2 * width], gate first; y: [tokens, width]. silu(g) = g / (1 + exp(-g)).
void swiglu(const Context& context, ConstRows gate_up, Rows y);

}  // namespace plait::kernels
