// What kernels are chosen by: the numbers of a GPU, known without one, and what was measured on it, if anything was.
//
// Plain values and pure functions. A machine that compiles for another one (a container image) names its GPU; a GPU
// that nobody has named here is described by what its driver says of it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/error.h"

namespace plait::cuda {

struct DeviceProperties;
struct GemmTable;

struct DeviceModel {
  std::string name;  // as --device spells it: "h200"
  int multiprocessors = 0;
  int64_t shared_bytes_per_block = 0;  // the most that a block can ask for
  double read_bandwidth = 0;           // bytes/s from memory
  double fp8_flops = 0;                // FLOP/s of e4m3 products
  double bf16_flops = 0;
  // Choices that were measured (gemm_table.h); without, the cost model chooses.
  std::shared_ptr<const GemmTable> table = nullptr;
  // Only kernels of one summing order for each shape: a row's result does not depend on how many rows there are.
  bool deterministic = false;
};

// Those of the Hopper generation that are sold, by their makers' figures.
std::span<const DeviceModel> known_devices();
// kInvalid: names those that are known.
Result<DeviceModel> find_device(const std::string& name);
// A known one if the driver says so, else from clocks and sizes: any GPU of the generation has a model.
DeviceModel describe_device(const DeviceProperties& properties);

}  // namespace plait::cuda
