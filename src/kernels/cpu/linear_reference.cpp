// The specification: one float32 sum per element, terms in ascending order of k.
#include "kernels/cpu/implementations.h"
#include "kernels/cpu/linear_product.h"
#include "kernels/cpu/plain_rows.h"

namespace plait::kernels {
namespace {

float dot(const float* a, const float* b, int64_t count) {
  float sum = 0;
  for (int64_t k = 0; k < count; ++k) sum += a[k] * b[k];
  return sum;
}

void round_row(Activation activation, const float* x, int64_t count, float* out) {
  for (int64_t k = 0; k < count; ++k)
    out[k] = activation == Activation::kBFloat16 ? static_cast<float>(BFloat16(x[k])) : x[k];
}

}  // namespace

void reference::run_products(const Context& context, std::span<const Product> products) {
  const int64_t in = products.front().weight->in_features(), out = products.front().weight->out_features();
  int64_t rows = 0;
  for (const Product& product : products) rows += product.rows;
  auto* rounded = context.workspace->get_array<float>(kSlotPackedX, rows * in);  // [rows of all products, in]
  auto* decoded = context.workspace->get_array<float>(kSlotThreadScratch, context.pool->size() * in);

  const float* x = rounded;
  for (const Product& product : products) {
    for (int64_t i = 0; i < product.rows; ++i, rounded += in)
      round_row(context.activation, product.x + i * product.x_stride, in, rounded);
    context.pool->parallel_for(out, 16, [&](int64_t begin, int64_t end, int member) {
      float* w = decoded + member * in;
      for (int64_t j = begin; j < end; ++j) {
        decode_plain_row(*product.weight, j, w);
        for (int64_t i = 0; i < product.rows; ++i) product.y[i * product.y_stride + j] = dot(x + i * in, w, in);
      }
    });
    x = rounded;
  }
}

}  // namespace plait::kernels
