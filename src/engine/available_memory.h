// How much memory this process can still take before the machine or its cgroup runs out.
#pragma once

#include <cstddef>
#include <filesystem>

namespace plait {

// The smaller of MemAvailable and of what every cgroup (v1 or v2) above this process has left; page cache that can be
// dropped counts as available. 0 if /proc cannot be read. `root` is "/" but for tests.
size_t available_memory_bytes(const std::filesystem::path& root = "/");

}  // namespace plait
