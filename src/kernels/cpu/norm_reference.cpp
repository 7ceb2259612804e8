#include "kernels/cpu/implementations.h"

namespace plait::kernels::reference {

void rms_norm(const Context&, ConstRows x, const float* weight, float eps, Rows y) {
  for (int64_t i = 0; i < x.rows; ++i) {
    double sum_of_squares = 0;
    for (int64_t j = 0; j < x.cols; ++j) sum_of_squares += double{x.row(i)[j]} * x.row(i)[j];
    const auto inverse = static_cast<float>(1 / std::sqrt(sum_of_squares / static_cast<double>(x.cols) + double{eps}));
    for (int64_t j = 0; j < x.cols; ++j) y.row(i)[j] = weight[j] * (x.row(i)[j] * inverse);
  }
}

void add_rms_norm(const Context& context, ConstRows delta, Rows residual, const float* weight, float eps, Rows y) {
  for (int64_t i = 0; i < delta.rows; ++i)
    for (int64_t j = 0; j < delta.cols; ++j) residual.row(i)[j] += delta.row(i)[j];
  reference::rms_norm(context, residual, weight, eps, y);
}

}  // namespace plait::kernels::reference
