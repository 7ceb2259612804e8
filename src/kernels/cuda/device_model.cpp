#include "kernels/cuda/device_model.h"

#include <algorithm>
#include <cctype>

#include <fmt/ranges.h>

#include "kernels/cuda/device.h"

namespace plait::cuda {
namespace {

constexpr int64_t kSharedBytes = 227 << 10;

const DeviceModel kDevices[] = {
    {"h200", 132, kSharedBytes, 4.8e12, 1979e12, 989e12},      {"h100", 132, kSharedBytes, 3.35e12, 1979e12, 989e12},
    {"h800", 132, kSharedBytes, 3.35e12, 1979e12, 989e12},     {"h100-nvl", 132, kSharedBytes, 3.9e12, 1671e12, 835e12},
    {"h100-pcie", 114, kSharedBytes, 2.0e12, 1513e12, 756e12}, {"h20", 78, kSharedBytes, 4.0e12, 296e12, 148e12},
};

// How the driver spells those that are known.
struct DriverName {
  const char* driver;
  const char* name;
};
constexpr DriverName kDriverNames[] = {
    {"NVIDIA H200", "h200"},         {"NVIDIA H100 80GB HBM3", "h100"}, {"NVIDIA H800", "h800"},
    {"NVIDIA H100 NVL", "h100-nvl"}, {"NVIDIA H100 PCIe", "h100-pcie"}, {"NVIDIA H20", "h20"},
};

// FLOP of a Hopper multiprocessor in a cycle.
constexpr double kFp8FlopsPerCycle = 8192, kBf16FlopsPerCycle = 4096;

// "NVIDIA H200 NVL" -> "nvidia-h200-nvl": fit for a flag and a file.
std::string plain_name(std::string name) {
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? static_cast<char>(std::tolower(c)) : '-';
  return name;
}

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

DeviceModel describe_device(const DeviceProperties& properties) {
  for (const auto& [driver, name] : kDriverNames) {
    // A part of a GPU has its name and fewer multiprocessors.
    const DeviceModel* known = std::ranges::find(kDevices, name, &DeviceModel::name);
    if (properties.name == driver && properties.multiprocessors == known->multiprocessors) return *known;
  }
  const DeviceModel& usual = kDevices[0];
  const double cycles = properties.clock_hz * properties.multiprocessors;
  const double share = static_cast<double>(properties.multiprocessors) / usual.multiprocessors;
  return {
      .name = plain_name(properties.name),
      .multiprocessors = properties.multiprocessors,
      .shared_bytes_per_block = properties.shared_bytes_per_block,
      .read_bandwidth = properties.memory_bandwidth > 0 ? properties.memory_bandwidth : share * usual.read_bandwidth,
      .fp8_flops = cycles > 0 ? cycles * kFp8FlopsPerCycle : share * usual.fp8_flops,
      .bf16_flops = cycles > 0 ? cycles * kBf16FlopsPerCycle : share * usual.bf16_flops};
}

}  // namespace plait::cuda
