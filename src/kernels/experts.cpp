#include "kernels/experts.h"

#include "base/assert.h"
#include "kernels/cpu/implementations.h"

namespace plait::kernels {

ExpertOrder ExpertOrder::make(std::span<const int32_t> expert_ids, int64_t tokens, int64_t k, int32_t first_expert,
                              int32_t expert_count) {
  PLAIT_ASSERT(std::ssize(expert_ids) == tokens * k, "experts: k ids per token");
  // Counting sort; pairs of one expert stay in token order.
  const auto local = [&](int32_t id) { return id >= first_expert && id - first_expert < expert_count; };
  std::vector<int64_t> next_row(expert_count, 0);  // first counts, then where the next row of each expert goes
  for (const int32_t id : expert_ids)
    if (local(id)) ++next_row[id - first_expert];

  ExpertOrder order;
  int64_t rows = 0;
  for (int32_t e = 0; e < expert_count; ++e) {
    const int64_t count = std::exchange(next_row[e], rows);
    if (count == 0) continue;
    order.expert_of_group.push_back(first_expert + e);
    order.group_begin.push_back(rows);
    rows += count;
  }
  order.group_begin.push_back(rows);

  order.row_of_pair.resize(expert_ids.size());
  order.token_of_row.resize(rows);
  for (int64_t pair = 0; pair < std::ssize(expert_ids); ++pair) {
    const int32_t id = expert_ids[pair];
    if (!local(id)) {
      order.row_of_pair[pair] = -1;
      continue;
    }
    const int64_t row = next_row[id - first_expert]++;
    order.row_of_pair[pair] = static_cast<int32_t>(row);
    order.token_of_row[row] = static_cast<int32_t>(pair / k);
  }
  return order;
}

void gather_rows(const Context& context, ConstRows x, std::span<const int32_t> token_of_row, Rows y) {
  PLAIT_ASSERT(std::ssize(token_of_row) == y.rows && x.cols == y.cols, "gather_rows: y is [rows, width of x]");
  operations_of(context).gather_rows(context, x, token_of_row, y);
}

void combine_rows(const Context& context, ConstRows x, const ExpertOrder& order, const float* weights, int64_t k,
                  Rows y) {
  PLAIT_ASSERT(std::ssize(order.row_of_pair) == y.rows * k, "combine_rows: k pairs per row of y");
  PLAIT_ASSERT(std::ssize(order.token_of_row) == x.rows && x.cols == y.cols, "combine_rows: x is [rows, width of y]");
  operations_of(context).combine_rows(context, x, order, weights, k, y);
}

}  // namespace plait::kernels
