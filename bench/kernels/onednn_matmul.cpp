#include "bench/kernels/onednn_matmul.h"

#include <cstring>
#include <vector>

#include <oneapi/dnnl/dnnl.hpp>

namespace plait::bench {

struct OneDnnMatmul::State {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  dnnl::matmul matmul;
  dnnl::memory x, y;
  std::vector<dnnl::memory> weights;
};

OneDnnMatmul::OneDnnMatmul(int64_t rows, int64_t out, int64_t in, bool bfloat16, int copies)
    : state_(std::make_unique<State>()) {
  using dnnl::memory;
  const auto type = bfloat16 ? memory::data_type::bf16 : memory::data_type::f32;
  const memory::desc x({rows, in}, type, memory::format_tag::ab);
  const memory::desc w({in, out}, type, memory::format_tag::any);
  const memory::desc y({rows, out}, memory::data_type::f32, memory::format_tag::ab);
  const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(x, w, y), state_->engine);
  state_->matmul = dnnl::matmul(description);
  const auto filled = [&](const memory::desc& shape) {
    memory result(shape, state_->engine);
    std::memset(result.get_data_handle(), 0x3c, shape.get_size());  // small positive numbers in both types
    return result;
  };
  state_->x = filled(x);
  state_->y = filled(y);
  for (int copy = 0; copy < copies; ++copy) state_->weights.push_back(filled(description.weights_desc()));
}

OneDnnMatmul::~OneDnnMatmul() = default;

void OneDnnMatmul::run(int copy) {
  state_->matmul.execute(state_->stream, {{DNNL_ARG_SRC, state_->x},
                                          {DNNL_ARG_WEIGHTS, state_->weights[static_cast<size_t>(copy)]},
                                          {DNNL_ARG_DST, state_->y}});
  state_->stream.wait();
}

}  // namespace plait::bench
