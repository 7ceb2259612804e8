#include "kernels/cuda/quantize.h"

#include "base/assert.h"
#include "base/round.h"
#include "kernels/cuda/device_text.h"

namespace plait::cuda {
namespace {

// As in device/quantize.cu.
constexpr int kQuantizeThreads = 256;
constexpr int64_t kUnitRows = 16;
constexpr int64_t kUnitColumns = 512;

constexpr int kBlocksPerMultiprocessor = 4;  // that run at once

}  // namespace

Status validate(const QuantizeShape& shape) {
  if (shape.k <= 0 || shape.k % 8 != 0)
    return invalid(fmt::format("rows of {} numbers: a positive multiple of 8 is possible", shape.k));
  if (shape.groups < 0) return invalid(fmt::format("{} groups", shape.groups));
  return {};
}

std::string name_of(const QuantizeShape& shape) {
  return fmt::format("{}quantize_k{}{}{}", shape.gated ? "swiglu_" : "", shape.k,
                     shape.groups > 0 ? fmt::format("_g{}", shape.groups) : "", shape.power_of_two ? "_ue8m0" : "");
}

jit::KernelSource quantize_source(const QuantizeShape& shape) {
  PLAIT_ASSERT(!validate(shape).has_error(), "rows that cannot be");
  jit::KernelSource source;
  source.name = name_of(shape);
  source.entry = "quantize";
  source.constants = {{"K", shape.k},
                      {"GATED", shape.gated ? 1 : 0},
                      {"POWER_OF_TWO", shape.power_of_two ? 1 : 0},
                      {"GROUPS", shape.groups}};
  source.text = fmt::format("{}\n{}", kHopperText, kQuantizeText);
  return source;
}

Result<Quantize> Quantize::load(const Device& device, const QuantizeShape& shape, const std::string& cubin) {
  PLAIT_RETURN_IF_ERROR(validate(shape));
  PLAIT_ASSIGN_OR_RETURN(LoadedKernel kernel, LoadedKernel::load(device, cubin, "quantize", 0));
  return Quantize(device, shape, std::move(kernel));
}

Status Quantize::launch(const QuantizeOperands& operands, const Stream& stream) const {
  if (operands.m == 0) return {};
  DevicePointer x = operands.x, q = operands.q, scales = operands.scales, counts = operands.row_counts;
  int m = static_cast<int>(operands.m), scale_rows = static_cast<int>(operands.scale_rows);
  void* const arguments[] = {&x, &q, &scales, &m, &scale_rows, &counts};
  const int64_t units = ceil_div(operands.m, kUnitRows) * ceil_div(shape_.k, kUnitColumns) * std::max(shape_.groups, 1);
  const int64_t most = int64_t{device_->properties().multiprocessors} * kBlocksPerMultiprocessor;
  return kernel_.launch({.x = static_cast<int>(std::min(units, most))}, kQuantizeThreads, arguments, stream);
}

}  // namespace plait::cuda
