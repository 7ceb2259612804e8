#include "kernels/cpu/implementations.h"

namespace plait::kernels::reference {

void embed(const Context&, const EmbeddingTable& table, std::span<const int32_t> token_ids, Rows y) {
  const auto element = [&](int64_t i) {
    return table.dtype == DType::kF32 ? static_cast<const float*>(table.data)[i]
                                      : static_cast<float>(static_cast<const BFloat16*>(table.data)[i]);
  };
  for (int64_t i = 0; i < y.rows; ++i)
    for (int64_t j = 0; j < y.cols; ++j)
      y.row(i)[j] = table.holds(token_ids[i]) ? element((token_ids[i] - table.first_id) * y.cols + j) : 0;
}

}  // namespace plait::kernels::reference
