// Products of rows of tokens with weights on Hopper: D = A * B^T with A [rows, k], B [n, k], D [rows, n].
//
// A GemmShape says what is multiplied, a GemmConfig how; both together are one kernel, in which only the row counts are
// left open. gemm_source writes it, a Gemm launches it. Pure functions, but for Gemm, which belongs to the thread of
// its device.
#pragma once

#include <cstdint>
#include <string>

#include "base/error.h"
#include "jit/kernel_source.h"
#include "kernels/cuda/device.h"

namespace plait::cuda {

enum class GemmRows {
  kDense,       // one matrix for all rows
  kContiguous,  // rows lie by group, each group's from a multiple of block_m on
  kMasked,      // a room of equal size for each group, filled from its beginning
  kBatched,     // every group has all m rows, its own columns of each: [rows, groups, k] to [rows, groups, n], as heads
                // lie
};
enum class GemmFormat {
  kFp8,   // e4m3; a float32 scale per row and 128 of k, and per 128 x 128 weights; summed in float32 every 128 of k
  kBf16,  // bfloat16, summed in float32
};
// What the float32 sums become in D.
enum class GemmResult {
  kBf16,
  kF32,  // nothing else: for what is compared afterwards, as the router's and the head's logits
};

struct GemmShape {
  GemmRows rows = GemmRows::kDense;
  GemmFormat format = GemmFormat::kFp8;
  int64_t n = 0;   // a multiple of 8
  int64_t k = 0;   // a multiple of 16 (kFp8) or 8 (kBf16); kBatched: of 64
  int groups = 1;  // weight matrices
  GemmResult result = GemmResult::kBf16;

  bool operator==(const GemmShape&) const = default;
};

int64_t element_bytes(GemmFormat format);
int64_t element_bytes(GemmResult result);

// What two blocks of a cluster fetch together, each one half.
enum class GemmShare { kNothing, kRows, kWeights };

struct GemmConfig {
  int block_m = 128;  // rows of a tile: 64 or 128
  int block_n = 128;  // columns of a tile, a multiple of 16 up to 256
  int stages = 4;     // tiles of k under way
  int waves = 1;      // kFp8: in which a warpgroup works through the columns; of one, products are in registers
  GemmShare share = GemmShare::kNothing;
  int band = 8;  // rows of tiles that are walked through side by side, for the second-level cache

  bool operator==(const GemmConfig&) const = default;
};

// kInvalid: says which number cannot be.
Status validate(const GemmShape& shape, const GemmConfig& config);
// "fp8_gemm_masked_n4096_k7168_g32_m128n128w1s4b8", "bf16_gemm_dense_f32_n256_k7168_g1_m64n128w1s8b8"
std::string name_of(const GemmShape& shape, const GemmConfig& config);
int threads_of(const GemmConfig& config);
int cluster_of(const GemmConfig& config);
int64_t shared_bytes_of(const GemmShape& shape, const GemmConfig& config);
// For a valid shape and configuration.
jit::KernelSource gemm_source(const GemmShape& shape, const GemmConfig& config);

// Device memory. `rows` below: of kDense, kContiguous and kBatched all rows m, of kMasked groups * m.
struct GemmOperands {
  DevicePointer a = 0;             // [rows, k]
  DevicePointer a_scales = 0;      // kFp8: [ceil(k / 128), scale_rows] (kMasked: one after the other for each group)
  int64_t scale_rows = 0;          // m, rounded up to a multiple of 4
  DevicePointer b = 0;             // [groups, n, k]
  DevicePointer b_scales = 0;      // kFp8: [groups, ceil(n / 128), ceil(k / 128)]
  DevicePointer d = 0;             // [rows, n]; rows that do not exist are not written
  int64_t m = 0;                   // kMasked: of one group's room
  DevicePointer row_counts = 0;    // kMasked: [groups]; kContiguous: [m / block_m], rows of each block; int32
  DevicePointer block_groups = 0;  // kContiguous: [m / block_m], int32
  // kBatched, in numbers: from a row to the next one, and in a row from a group to the next one. What lies between is
  // neither read nor written.
  int64_t a_row_stride = 0, a_group_stride = 0;
  int64_t d_row_stride = 0, d_group_stride = 0;
};

class Gemm {
 public:
  // `cubin`: of gemm_source(shape, config).
  static Result<Gemm> load(const Device& device, const GemmShape& shape, const GemmConfig& config,
                           const std::string& cubin);
  // kInvalid: an operand, or a stride, that is not aligned to 16 bytes; strides with which groups overlap. Returns
  // before the product is done.
  Status launch(const GemmOperands& operands, const Stream& stream) const;

 private:
  Gemm(const Device& device, const GemmShape& shape, const GemmConfig& config, LoadedKernel kernel)
      : device_(&device), shape_(shape), config_(config), kernel_(std::move(kernel)) {}

  const Device* device_;
  GemmShape shape_;
  GemmConfig config_;
  LoadedKernel kernel_;
};

}  // namespace plait::cuda
