// Which kernels can multiply the rows of a shape. Configurations are listed here and nowhere else: the chooser picks
// among the usual ones, the tuner and the benchmark among all, and a tuned table names one of all.
//
// Values and pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "kernels/cuda/device_model.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/narrow_gemm.h"

namespace plait::cuda {

// One kernel.
struct GemmKernel {
  GemmShape shape;
  std::variant<GemmConfig, NarrowGemmConfig> config;

  bool operator==(const GemmKernel&) const = default;
};
std::string name_of(const GemmKernel& kernel);
jit::KernelSource source_of(const GemmKernel& kernel);

// Rows as choose_gemm counts them. In an order that depends on nothing else; no two are the same kernel.

// Few, since each is a kernel that is compiled.
std::vector<GemmKernel> usual_candidates(const DeviceModel& device, const GemmShape& shape, int64_t rows);
// Every configuration that could be good for so many rows; the usual ones are among them.
std::vector<GemmKernel> all_candidates(const DeviceModel& device, const GemmShape& shape, int64_t rows);
// The one of all_candidates with that name.
std::optional<GemmKernel> find_candidate(const DeviceModel& device, const GemmShape& shape, int64_t rows,
                                         const std::string& name);

// Of a narrow product: blocks that it has for so many rows, and that run at once.
int64_t blocks_of(const GemmShape& shape, const NarrowGemmConfig& config, int64_t rows);
int64_t blocks_at_once(const DeviceModel& device, const GemmShape& shape, const NarrowGemmConfig& config);

// -- Summing order

// In which order a kernel adds the products of one result. Kernels of equal shape and order give equal bits, whatever
// their tiles, so a row's result does not depend on how many rows there are if all kernels of its shape have one order.
//
// Products of `chain` numbers of k, ascending, are added by the tensor cores; these sums go on in float32, ascending.
// k is cut into `parts` stretches of whole chains that are summed so on their own, and then added in ascending order.
struct SummingOrder {
  int64_t chain = 0;  // k: one chain, float32 adds nothing
  int parts = 1;

  bool operator==(const SummingOrder&) const = default;
};
SummingOrder summing_order(const GemmKernel& kernel);
// That of the shape's wide kernels, which are there for any number of rows.
SummingOrder deterministic_order(const GemmShape& shape);
std::string describe(const SummingOrder& order);

}  // namespace plait::cuda
