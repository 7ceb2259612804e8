// What kernels are chosen by: the numbers of a GPU, known without one.
//
// Plain values and pure functions. A machine that compiles for another one (a container image) names its GPU; a GPU
// that nobody has named here is described by what its driver says of it.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/error.h"

namespace plait::cuda {

struct DeviceModel {
  std::string name;  // as --device spells it: "h200"
  int multiprocessors = 0;
  int64_t shared_bytes_per_block = 0;  // the most that a block can ask for
  double read_bandwidth = 0;           // bytes/s from memory
  double fp8_flops = 0;                // FLOP/s of e4m3 products
  double bf16_flops = 0;
};

// Those of the Hopper generation that are sold, by their makers' figures.
std::span<const DeviceModel> known_devices();
// kInvalid: names those that are known.
Result<DeviceModel> find_device(const std::string& name);

}  // namespace plait::cuda
