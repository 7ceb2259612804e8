#include "kernels/activation.h"

#include "base/assert.h"
#include "kernels/cpu/implementations.h"

namespace plait::kernels {

void swiglu(const Context& context, ConstRows gate_up, Rows y) {
  PLAIT_ASSERT(gate_up.rows == y.rows && gate_up.cols == 2 * y.cols, "swiglu: gate_up must be twice as wide as y");
  operations_of(context).swiglu(context, gate_up, y);
}

}  // namespace plait::kernels
