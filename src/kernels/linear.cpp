#include "kernels/linear.h"

#include "base/assert.h"
#include "kernels/cpu/implementations.h"
#include "kernels/cpu/linear_product.h"

namespace plait::kernels {
namespace {

void check_weight(const Context& context, const PackedMatrix& weight, const PackedMatrix& first, int64_t in_features,
                  int64_t out_features) {
  PLAIT_ASSERT(weight.implementation() == context.implementation, "the weight was packed for another implementation");
  PLAIT_ASSERT(weight.in_features() == in_features, "x has another width than the weight");
  PLAIT_ASSERT(weight.out_features() == out_features, "y has another width than the weight");
  PLAIT_ASSERT(weight.format() == first.format(), "the weights of one call differ in format");
}

}  // namespace

void linear(const Context& context, ConstRows x, const PackedMatrix& weight, Rows y) {
  PLAIT_ASSERT(x.rows == y.rows, "x and y differ in rows");
  check_weight(context, weight, weight, x.cols, y.cols);
  if (x.rows == 0) return;
  const Product product{&weight, x.data, y.data, x.rows, x.stride, y.stride};
  operations_of(context).run_products(context, {&product, 1});
}

void grouped_linear(const Context& context, ConstRows x, std::span<const RowGroup> groups, Rows y) {
  auto* products = context.workspace->get_array<Product>(kSlotProducts, static_cast<int64_t>(groups.size()));
  size_t count = 0;
  for (const RowGroup& group : groups) {
    if (group.row_count == 0) continue;
    PLAIT_ASSERT(group.row_begin >= 0 && group.row_begin + group.row_count <= std::min(x.rows, y.rows),
                 "a group names rows outside x or y");
    check_weight(context, *group.weight, *groups.front().weight, x.cols, y.cols);
    products[count++] = {group.weight, x.row(group.row_begin), y.row(group.row_begin), group.row_count, x.stride,
                         y.stride};
  }
  if (count > 0) operations_of(context).run_products(context, {products, count});
}

void head_linear(const Context& context, HeadRows x, std::span<const PackedMatrix> weights, HeadRows y) {
  PLAIT_ASSERT(x.tokens == y.tokens && x.heads == y.heads && x.heads == static_cast<int64_t>(weights.size()),
               "x, y and the weights differ in tokens or heads");
  if (x.tokens == 0 || x.heads == 0) return;
  auto* products = context.workspace->get_array<Product>(kSlotProducts, x.heads);
  for (int64_t head = 0; head < x.heads; ++head) {
    const PackedMatrix& weight = weights[static_cast<size_t>(head)];
    check_weight(context, weight, weights.front(), x.width, y.width);
    products[head] = {&weight, x.at(0, head), y.at(0, head), x.tokens, x.token_stride, y.token_stride};
  }
  operations_of(context).run_products(context, {products, weights.size()});
}

}  // namespace plait::kernels
