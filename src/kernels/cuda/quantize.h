// Rows of bfloat16 -> the e4m3 rows and scales that FP8 products take (device/quantize.cu has the formula), optionally
// silu(gate) * up on the way. Pure functions, but for Quantize, which belongs to the thread of its device.
#pragma once

#include <cstdint>
#include <string>

#include "base/error.h"
#include "jit/kernel_source.h"
#include "kernels/cuda/device.h"

namespace plait::cuda {

struct QuantizeShape {
  int64_t k = 0;              // numbers of a row of the result, a multiple of 8
  bool gated = false;         // rows have gate, then up: 2 * k
  bool power_of_two = false;  // scales are powers of two, as in checkpoints with UE8M0 scales
  int groups = 0;             // each with room for m rows, of which as many exist as it says; 0: all m rows

  bool operator==(const QuantizeShape&) const = default;
};

// kInvalid: says which number cannot be.
Status validate(const QuantizeShape& shape);
std::string name_of(const QuantizeShape& shape);
// For a valid shape.
jit::KernelSource quantize_source(const QuantizeShape& shape);

// Device memory; rows that do not exist are neither read nor written.
struct QuantizeOperands {
  DevicePointer x = 0;           // [rows, k or 2 * k]
  DevicePointer q = 0;           // [rows, k]
  DevicePointer scales = 0;      // [ceil(k / 128), scale_rows], for each group one after the other
  int64_t scale_rows = 0;        // at least m
  int64_t m = 0;                 // of one group's room, or all
  DevicePointer row_counts = 0;  // [groups], int32
};

class Quantize {
 public:
  // `cubin`: of quantize_source(shape).
  static Result<Quantize> load(const Device& device, const QuantizeShape& shape, const std::string& cubin);
  // Returns before the rows are done.
  Status launch(const QuantizeOperands& operands, const Stream& stream) const;

 private:
  Quantize(const Device& device, const QuantizeShape& shape, LoadedKernel kernel)
      : device_(&device), shape_(shape), kernel_(std::move(kernel)) {}

  const Device* device_;
  QuantizeShape shape_;
  LoadedKernel kernel_;
};

}  // namespace plait::cuda
