#include "base/units.h"

namespace plait {
namespace {
// A value that would print as 1000.0 or 1024.0 belongs to the next unit.
constexpr double kHalfDigit = 0.05;
}  // namespace

std::string format_bytes(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  while (value >= 1024 - kHalfDigit && unit + 1 < std::size(kUnits)) value /= 1024, ++unit;
  return fmt::format("{:.{}f} {}", value, value < 10 - kHalfDigit / 10 ? 2 : 1, kUnits[unit]);
}

std::string format_seconds(double seconds) {
  if (seconds < 999.5e-6) return fmt::format("{:.0f} us", seconds * 1e6);
  if (seconds < 1 - kHalfDigit / 1e3) return fmt::format("{:.1f} ms", seconds * 1e3);
  if (seconds < 120) return fmt::format("{:.2f} s", seconds);
  const auto whole = static_cast<int64_t>(seconds);
  return fmt::format("{} min {} s", whole / 60, whole % 60);
}

std::string format_rate(double bytes_per_second) {
  if (bytes_per_second < (1e3 - kHalfDigit) * 1e3) return fmt::format("{:.1f} KB/s", bytes_per_second / 1e3);
  if (bytes_per_second < (1e3 - kHalfDigit) * 1e6) return fmt::format("{:.1f} MB/s", bytes_per_second / 1e6);
  return fmt::format("{:.2f} GB/s", bytes_per_second / 1e9);
}

}  // namespace plait
