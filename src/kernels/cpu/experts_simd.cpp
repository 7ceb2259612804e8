#include "kernels/cpu/implementations.h"
#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/experts_simd.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace plait::kernels::HWY_NAMESPACE {
namespace {

// y += sum over rows of weights[i] * rows[i], the sum in the order of the rows
void combine_row(const float* const* rows, const float* weights, int64_t count, int64_t width, float* y) {
  const Floats d;
  for (int64_t column = 0; column < width; column += kLanes) {
    const int64_t left = width - column;
    const auto load = [&](const float* row) HWY_ATTR {
      return left >= kLanes ? hn::LoadU(d, row + column) : load_tail(row + column, left);
    };
    Vector sum = hn::Zero(d);
    for (int64_t i = 0; i < count; ++i) sum = hn::MulAdd(hn::Set(d, weights[i]), load(rows[i]), sum);
    sum = hn::Add(load(y), sum);
    if (left >= kLanes)
      hn::StoreU(sum, d, y + column);
    else
      store_tail(sum, y + column, left);
  }
}

}  // namespace
}  // namespace plait::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace plait::kernels {
HWY_EXPORT(combine_row);

namespace fast {

void gather_rows(const Context& context, ConstRows x, std::span<const int32_t> token_of_row, Rows y) {
  context.pool->parallel_for(y.rows, rows_per_chunk(y.cols), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      std::memcpy(y.row(i), x.row(token_of_row[i]), static_cast<size_t>(y.cols) * sizeof(float));
  });
}

void combine_rows(const Context& context, ConstRows x, const ExpertOrder& order, const float* weights, int64_t k,
                  Rows y) {
  const auto combine_row = HWY_DYNAMIC_DISPATCH(combine_row);
  context.pool->parallel_for(y.rows, rows_per_chunk(y.cols * k), [&](int64_t begin, int64_t end, int) {
    std::vector<const float*> rows(k);
    std::vector<float> row_weights(k);
    for (int64_t t = begin; t < end; ++t) {
      int64_t count = 0;
      for (int64_t pair = t * k; pair < (t + 1) * k; ++pair) {
        if (order.row_of_pair[pair] < 0) continue;
        rows[count] = x.row(order.row_of_pair[pair]);
        row_weights[count++] = weights[pair];
      }
      combine_row(rows.data(), row_weights.data(), count, y.cols, y.row(t));
    }
  });
}

}  // namespace fast
}  // namespace plait::kernels
#endif
