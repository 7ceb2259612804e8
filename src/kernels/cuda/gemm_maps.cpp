#include "kernels/cuda/gemm_maps.h"

namespace plait::cuda {
namespace {

// CUtensorMapDataType, CUtensorMapSwizzle, CUtensorMapL2promotion
constexpr int kUint8 = 0, kFloat32 = 7;
constexpr int kSwizzleNone = 0, kSwizzle128 = 3;
constexpr int kPromote128 = 2, kPromote256 = 3;

Result<TensorMap> matrix_map(const Driver& driver, DevicePointer memory, int64_t rows, int64_t row_bytes,
                             int64_t stride_bytes, int64_t box_rows) {
  TensorMap map;
  const uint64_t sizes[] = {static_cast<uint64_t>(row_bytes), static_cast<uint64_t>(rows)};
  const uint64_t strides[] = {static_cast<uint64_t>(stride_bytes)};
  const uint32_t box[] = {static_cast<uint32_t>(kBlockBytes), static_cast<uint32_t>(box_rows)}, steps[] = {1, 1};
  PLAIT_RETURN_IF_ERROR(
      driver.check(driver.TensorMapEncodeTiled(&map, kUint8, 2, reinterpret_cast<void*>(memory), sizes, strides, box,
                                               steps, 0, kSwizzle128, kPromote256, 0),
                   fmt::format("describing a matrix [{}, {} bytes]", rows, row_bytes)));
  return map;
}

Result<TensorMap> scales_map(const Driver& driver, DevicePointer memory, int64_t rows, int64_t columns,
                             int64_t box_columns) {
  TensorMap map;
  const uint64_t sizes[] = {static_cast<uint64_t>(columns), static_cast<uint64_t>(rows)};
  const uint64_t strides[] = {static_cast<uint64_t>(columns) * sizeof(float)};
  const uint32_t box[] = {static_cast<uint32_t>(box_columns), 1}, steps[] = {1, 1};
  PLAIT_RETURN_IF_ERROR(
      driver.check(driver.TensorMapEncodeTiled(&map, kFloat32, 2, reinterpret_cast<void*>(memory), sizes, strides, box,
                                               steps, 0, kSwizzleNone, kPromote128, 0),
                   fmt::format("describing scales [{}, {}]", rows, columns)));
  return map;
}

}  // namespace

Result<GemmMaps> gemm_maps(const Driver& driver, const GemmShape& shape, const GemmOperands& operands,
                           const GemmBoxes& boxes) {
  for (const DevicePointer pointer : {operands.a, operands.a_scales, operands.b, operands.d})
    if (pointer % 16 != 0)
      return invalid(fmt::format("an operand at {:#x}: 16 bytes are the least alignment", pointer));
  const int64_t row_bytes = shape.k * element_bytes(shape.format);
  const int64_t rooms = shape.rows == GemmRows::kMasked ? shape.groups : 1;
  GemmMaps maps;
  const bool batched = shape.rows == GemmRows::kBatched;
  const int64_t element = element_bytes(shape.format);
  const int64_t a_bytes = batched ? (shape.groups - 1) * operands.a_group_stride * element + row_bytes : row_bytes;
  const int64_t a_stride = batched ? operands.a_row_stride * element : row_bytes;
  PLAIT_ASSIGN_OR_RETURN(maps.a, matrix_map(driver, operands.a, operands.m * rooms, a_bytes, a_stride, boxes.a_rows));
  PLAIT_ASSIGN_OR_RETURN(maps.b,
                         matrix_map(driver, operands.b, shape.groups * shape.n, row_bytes, row_bytes, boxes.b_rows));
  if (shape.format == GemmFormat::kFp8) {
    PLAIT_ASSIGN_OR_RETURN(maps.a_scales, scales_map(driver, operands.a_scales, (shape.k + 127) / 128 * rooms,
                                                     operands.scale_rows, boxes.scale_rows));
  }
  return maps;
}

}  // namespace plait::cuda
