#include "kernels/cuda/gemm.h"

#include "kernels/cuda/gemm_maps.h"

namespace plait::cuda {
namespace {

constexpr int64_t kAlignment = 16;  // bytes, of what is copied and written

Status check_strides(const GemmShape& shape, const GemmOperands& operands) {
  const auto check = [&](const char* name, int64_t row, int64_t group, int64_t width, int64_t element) -> Status {
    const bool aligned = row * element % kAlignment == 0 && group * element % kAlignment == 0;
    if (aligned && group >= width && row >= (shape.groups - 1) * group + width && row <= INT32_MAX) return {};
    return invalid(
        fmt::format("{} of a batched product: rows {} numbers apart and groups {}, for {} groups of {} "
                    "numbers: groups must not overlap, and lie at multiples of {} bytes",
                    name, row, group, shape.groups, width, kAlignment));
  };
  PLAIT_RETURN_IF_ERROR(
      check("A", operands.a_row_stride, operands.a_group_stride, shape.k, element_bytes(shape.format)));
  return check("D", operands.d_row_stride, operands.d_group_stride, shape.n, element_bytes(shape.result));
}

}  // namespace

Result<Gemm> Gemm::load(const Device& device, const GemmShape& shape, const GemmConfig& config,
                        const std::string& cubin) {
  PLAIT_RETURN_IF_ERROR(validate(shape, config));
  PLAIT_ASSIGN_OR_RETURN(LoadedKernel kernel,
                         LoadedKernel::load(device, cubin, "gemm", static_cast<int>(shared_bytes_of(shape, config))));
  return Gemm(device, shape, config, std::move(kernel));
}

Status Gemm::launch(const GemmOperands& operands, const Stream& stream) const {
  if (operands.m == 0) return {};
  const bool batched = shape_.rows == GemmRows::kBatched;
  if (batched) PLAIT_RETURN_IF_ERROR(check_strides(shape_, operands));
  const GemmBoxes boxes = {.a_rows = config_.block_m / (config_.share == GemmShare::kRows ? 2 : 1),
                           .b_rows = config_.block_n / (config_.share == GemmShare::kWeights ? 2 : 1),
                           .scale_rows = config_.block_m};
  PLAIT_ASSIGN_OR_RETURN(GemmMaps maps, gemm_maps(device_->driver(), shape_, operands, boxes));
  DevicePointer b_scales = operands.b_scales, d = operands.d, counts = operands.row_counts,
                groups = operands.block_groups;
  int m = static_cast<int>(operands.m);
  int a_group_bytes = static_cast<int>(operands.a_group_stride * element_bytes(shape_.format));
  int d_row_stride = static_cast<int>(batched ? operands.d_row_stride : shape_.n);
  int d_group_stride = static_cast<int>(operands.d_group_stride);
  void* const arguments[] = {&maps.a, &maps.b,        &maps.a_scales, &b_scales,      &d, &m, &counts,
                             &groups, &a_group_bytes, &d_row_stride,  &d_group_stride};
  const int cluster = cluster_of(config_);
  return kernel_.launch({.x = device_->properties().multiprocessors / cluster * cluster}, threads_of(config_),
                        arguments, stream);
}

}  // namespace plait::cuda
