#include "kernels/cuda/gemm.h"

namespace plait::cuda {
namespace {

// CUtensorMapDataType, CUtensorMapSwizzle, CUtensorMapL2promotion
constexpr int kUint8 = 0, kFloat32 = 7;
constexpr int kSwizzleNone = 0, kSwizzle128 = 3;
constexpr int kPromote128 = 2, kPromote256 = 3;

constexpr int64_t kBlockBytes = 128;

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

Result<Gemm> Gemm::load(const Device& device, const GemmShape& shape, const GemmConfig& config,
                        const std::string& cubin) {
  PLAIT_RETURN_IF_ERROR(validate(shape, config));
  PLAIT_ASSIGN_OR_RETURN(LoadedKernel kernel,
                         LoadedKernel::load(device, cubin, "gemm", static_cast<int>(shared_bytes_of(shape, config))));
  return Gemm(device, shape, config, std::move(kernel));
}

Result<TensorMap> Gemm::rows_map(DevicePointer memory, int64_t row_bytes, int64_t rows, int64_t box_rows) const {
  TensorMap map;
  const uint64_t sizes[] = {static_cast<uint64_t>(row_bytes), static_cast<uint64_t>(rows)};
  const uint64_t strides[] = {static_cast<uint64_t>(row_bytes)};
  const uint32_t box[] = {kBlockBytes, static_cast<uint32_t>(box_rows)}, steps[] = {1, 1};
  PLAIT_RETURN_IF_ERROR(device_->driver().check(
      device_->driver().TensorMapEncodeTiled(&map, kUint8, 2, reinterpret_cast<void*>(memory), sizes, strides, box,
                                             steps, 0, kSwizzle128, kPromote256, 0),
      fmt::format("describing a matrix [{}, {} bytes]", rows, row_bytes)));
  return map;
}

Result<TensorMap> Gemm::scales_map(const GemmOperands& operands) const {
  TensorMap map;
  const int64_t rows = ceil_div(shape_.k, 128) * (shape_.rows == GemmRows::kMasked ? shape_.groups : 1);
  const uint64_t sizes[] = {static_cast<uint64_t>(operands.scale_rows), static_cast<uint64_t>(rows)};
  const uint64_t strides[] = {static_cast<uint64_t>(operands.scale_rows) * sizeof(float)};
  const uint32_t box[] = {static_cast<uint32_t>(config_.block_m), 1}, steps[] = {1, 1};
  PLAIT_RETURN_IF_ERROR(device_->driver().check(
      device_->driver().TensorMapEncodeTiled(&map, kFloat32, 2, reinterpret_cast<void*>(operands.a_scales), sizes,
                                             strides, box, steps, 0, kSwizzleNone, kPromote128, 0),
      fmt::format("describing scales [{}, {}]", rows, operands.scale_rows)));
  return map;
}

Status Gemm::launch(const GemmOperands& operands, const Stream& stream) const {
  if (operands.m == 0) return {};
  for (const DevicePointer pointer : {operands.a, operands.a_scales, operands.b, operands.d})
    if (pointer % 16 != 0)
      return invalid(fmt::format("an operand at {:#x}: 16 bytes are the least alignment", pointer));
  const int64_t element_bytes = shape_.format == GemmFormat::kFp8 ? 1 : 2;
  const int64_t rows = operands.m * (shape_.rows == GemmRows::kMasked ? shape_.groups : 1);
  const int64_t a_box = config_.block_m / (config_.share == GemmShare::kRows ? 2 : 1);
  const int64_t b_box = config_.block_n / (config_.share == GemmShare::kWeights ? 2 : 1);
  PLAIT_ASSIGN_OR_RETURN(TensorMap a, rows_map(operands.a, shape_.k * element_bytes, rows, a_box));
  PLAIT_ASSIGN_OR_RETURN(TensorMap b, rows_map(operands.b, shape_.k * element_bytes, shape_.groups * shape_.n, b_box));
  TensorMap a_scales = {};
  if (shape_.format == GemmFormat::kFp8) {
    PLAIT_ASSIGN_OR_RETURN(a_scales, scales_map(operands));
  }
  DevicePointer b_scales = operands.b_scales, d = operands.d, counts = operands.row_counts,
                groups = operands.block_groups;
  int m = static_cast<int>(operands.m);
  void* const arguments[] = {&a, &b, &a_scales, &b_scales, &d, &m, &counts, &groups};
  const int cluster = cluster_of(config_);
  const int blocks = device_->properties().multiprocessors / cluster * cluster;
  return kernel_.launch(blocks, threads_of(config_), arguments, stream);
}

}  // namespace plait::cuda
