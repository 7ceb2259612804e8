#include "kernels/cuda/device_model.h"

#include <fmt/ranges.h>

namespace plait::cuda {
namespace {

constexpr int64_t kSharedBytes = 227 << 10;

const DeviceModel kDevices[] = {
    {"h200", 132, kSharedBytes, 4.8e12, 1979e12, 989e12},      {"h100", 132, kSharedBytes, 3.35e12, 1979e12, 989e12},
    {"h800", 132, kSharedBytes, 3.35e12, 1979e12, 989e12},     {"h100-nvl", 132, kSharedBytes, 3.9e12, 1671e12, 835e12},
    {"h100-pcie", 114, kSharedBytes, 2.0e12, 1513e12, 756e12}, {"h20", 78, kSharedBytes, 4.0e12, 296e12, 148e12},
};

}  // namespace

std::span<const DeviceModel> known_devices() {
  return kDevices;
}

Result<DeviceModel> find_device(const std::string& name) {
  std::vector<std::string> names;
  for (const DeviceModel& device : kDevices) {
    if (device.name == name) return device;
    names.push_back(device.name);
  }
  return invalid(fmt::format("no device '{}' is known; there are: {}", name, fmt::join(names, ", ")));
}

}  // namespace plait::cuda
