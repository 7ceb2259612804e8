#include "kernels/cpu/implementations.h"

namespace plait::kernels::reference {

void swiglu(const Context&, ConstRows gate_up, Rows y) {
  for (int64_t i = 0; i < y.rows; ++i) {
    const float* gate = gate_up.row(i);
    const float* up = gate + y.cols;
    // exp(-g) overflows to infinity for g below -88, and g / infinity is the right limit, zero
    for (int64_t j = 0; j < y.cols; ++j) y.row(i)[j] = gate[j] / (1 + std::exp(-gate[j])) * up[j];
  }
}

}  // namespace plait::kernels::reference
