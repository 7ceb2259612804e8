// oneDNN's matmul with weights in the layout that it likes best, for comparison.
#pragma once

#include <cstdint>
#include <memory>

namespace plait::bench {

class OneDnnMatmul {
 public:
  // y [rows, out] = x [rows, in] W^T. With `bfloat16`, x and W are bfloat16; y is float32.
  OneDnnMatmul(int64_t rows, int64_t out, int64_t in, bool bfloat16, int copies);
  ~OneDnnMatmul();
  void run(int copy);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace plait::bench
