#include "kernels/cpu/implementations.h"

namespace plait::kernels::reference {

void embed(const Context&, const void* table, DType table_dtype, std::span<const int32_t> token_ids, Rows y) {
  for (int64_t i = 0; i < y.rows; ++i) {
    const int64_t first = token_ids[i] * y.cols;
    for (int64_t j = 0; j < y.cols; ++j)
      y.row(i)[j] = table_dtype == DType::kF32 ? static_cast<const float*>(table)[first + j]
                                               : static_cast<float>(static_cast<const BFloat16*>(table)[first + j]);
  }
}

}  // namespace plait::kernels::reference
