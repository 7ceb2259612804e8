#include "kernels/norm.h"

#include "base/assert.h"
#include "kernels/cpu/implementations.h"

namespace plait::kernels {

void rms_norm(const Context& context, ConstRows x, const float* weight, float eps, Rows y) {
  PLAIT_ASSERT(x.rows == y.rows && x.cols == y.cols, "rms_norm: y must have the shape of x");
  operations_of(context).rms_norm(context, x, weight, eps, y);
}

void add_rms_norm(const Context& context, ConstRows delta, Rows residual, const float* weight, float eps, Rows y) {
  PLAIT_ASSERT(delta.rows == residual.rows && delta.cols == residual.cols, "add_rms_norm: delta and residual differ");
  PLAIT_ASSERT(residual.rows == y.rows && residual.cols == y.cols, "add_rms_norm: y must have the residual's shape");
  operations_of(context).add_rms_norm(context, delta, residual, weight, eps, y);
}

}  // namespace plait::kernels
