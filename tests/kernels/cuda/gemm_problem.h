// A product with random operands, its expected results, and what must stay untouched.
#pragma once

#include <vector>

#include "kernels/cuda/gemm.h"
#include "tests/kernels/cuda/guarded_buffer.h"

namespace plait::cuda::testing {

// `counts`: rows of each group (kDense: of the only one, kBatched: of every one). `room`: kMasked, rows that each group
// has room for; kBatched, numbers between the groups of a row, in A and in D.
struct GemmProblem {
  GemmShape shape;
  std::vector<int64_t> counts;
  int64_t room = 0;
};

// Operands in host memory as the kernel takes them. Rows that do not exist hold NaN, their scales too, and so does what
// lies between the groups of a row.
struct GemmData {
  // `block_m`: of kContiguous, the rows of a block.
  GemmData(const GemmProblem& problem, int64_t block_m, uint32_t seed);

  int64_t group_of(int64_t row) const { return row_group[static_cast<size_t>(row)]; }  // -1: does not exist
  struct Exact {
    double sum = 0;
    double size = 0;  // the sum of what is added, without signs
  };
  Exact exact(int64_t row, int64_t n) const;  // of a row that exists
  // Where a row begins, in numbers.
  int64_t a_begin(int64_t row) const { return begin_of(row, a_row_stride, a_group_stride); }
  int64_t d_begin(int64_t row) const { return begin_of(row, d_row_stride, d_group_stride); }

  GemmProblem problem;
  int64_t rows = 0;  // of A and D, those that do not exist included; kBatched: of all groups, group by group
  int64_t m = 0;     // as GemmOperands has it
  int64_t scale_rows = 0;
  int64_t a_row_stride = 0, a_group_stride = 0, d_row_stride = 0, d_group_stride = 0;
  int64_t a_count = 0, d_count = 0;  // numbers from the first to the last one
  std::vector<uint8_t> a, b;
  std::vector<float> a_scales, b_scales;
  std::vector<int32_t> row_counts, block_groups;
  std::vector<int64_t> row_group;  // [rows]

 private:
  int64_t begin_of(int64_t row, int64_t row_stride, int64_t group_stride) const {
    return problem.shape.rows == GemmRows::kBatched ? row % m * row_stride + row / m * group_stride : row * row_stride;
  }
  void place_rows(int64_t block_m);
  void place_numbers();
  void spoil_missing_rows();
  void spoil_gaps();
};

// The operands and the results on a device.
struct GemmOnDevice {
  static Result<GemmOnDevice> make(const Device& device, const Stream& stream, const GemmData& data,
                                   size_t guard_bytes);
  // Waits for the stream. kInternal: something was written outside of a buffer.
  Status check_guards(const Stream& stream) const;

  GuardedBuffer a, b, a_scales, b_scales, row_counts, block_groups, d;
  GemmOperands operands;
};

}  // namespace plait::cuda::testing
