// Which kernel multiplies how many rows: what was measured on the device (its table), else a cost model over its
// properties; and with it every kernel that can ever be asked for.
//
// Pure functions. The choice depends on the device with its table, the shape and a class of row counts (rows_class),
// never on what else runs, and is made on the host, so the set of kernels is found by going through all classes
// (gemm_choices): there is no row count whose kernel is not in it. With DeviceModel::deterministic all choices of a
// shape have its deterministic_order (gemm_candidates.h).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/gemm_candidates.h"

namespace plait::cuda {

// Row counts of a class get the same kernel: steps of 8 up to 128, of 64 up to 1024, of an eighth from there on. The
// largest of the class of `rows`, which is at least 1.
int64_t rows_class(int64_t rows);

// `rows`: kDense, kContiguous and kBatched all of them, kMasked those that a group has on average, at least 1.
GemmKernel choose_gemm(const DeviceModel& device, const GemmShape& shape, int64_t rows);
// Seconds that the model expects of a kernel.
double expected_seconds(const DeviceModel& device, const GemmKernel& kernel, int64_t rows);

// Largest row counts of all classes with a row count in [first, last], ascending.
std::vector<int64_t> rows_classes(int64_t first, int64_t last);

// What choose_gemm says for each of 1 to `most_rows`, in runs of equal answers.
struct GemmChoice {
  int64_t first_rows = 0, last_rows = 0;
  GemmKernel kernel;
};
std::vector<GemmChoice> gemm_choices(const DeviceModel& device, const GemmShape& shape, int64_t most_rows);

}  // namespace plait::cuda
