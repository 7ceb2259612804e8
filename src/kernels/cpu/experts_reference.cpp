#include "kernels/cpu/implementations.h"

namespace plait::kernels::reference {

void gather_rows(const Context&, ConstRows x, std::span<const int32_t> token_of_row, Rows y) {
  for (int64_t i = 0; i < y.rows; ++i) std::copy_n(x.row(token_of_row[i]), y.cols, y.row(i));
}

void combine_rows(const Context&, ConstRows x, const ExpertOrder& order, const float* weights, int64_t k, Rows y) {
  for (int64_t t = 0; t < y.rows; ++t) {
    for (int64_t j = 0; j < y.cols; ++j) {
      float sum = 0;
      for (int64_t pair = t * k; pair < (t + 1) * k; ++pair)
        if (const int32_t row = order.row_of_pair[pair]; row >= 0) sum += weights[pair] * x.row(row)[j];
      y.row(t)[j] += sum;
    }
  }
}

}  // namespace plait::kernels::reference
