// RMSNorm: y = w * x / sqrt(mean(x^2) + eps), in float32.
#pragma once

#include "kernels/context.h"
#include "tensor/matrix.h"

namespace plait::kernels {

// x, y: [tokens, width] (may be the same memory), weight: [width]
void rms_norm(const Context& context, ConstRows x, const float* weight, float eps, Rows y);

// residual += delta, then y = rms_norm(residual). All [tokens, width].
void add_rms_norm(const Context& context, ConstRows delta, Rows residual, const float* weight, float eps, Rows y);

}  // namespace plait::kernels
