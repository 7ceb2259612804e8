#include "engine/available_memory.h"

#include <fstream>

namespace plait {
namespace {

constexpr size_t kUnlimited = std::numeric_limits<size_t>::max();

// The number behind `key` in a file of lines "key value" or "key: value kB".
std::optional<size_t> read_field(const std::filesystem::path& path, std::string_view key) {
  std::ifstream file(path);
  std::string word;
  size_t value = 0;
  while (file >> word) {
    if (word == key && file >> value) return value;
    file.clear();
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return std::nullopt;
}

// The number that a file holds; nothing for "max" or without a file.
std::optional<size_t> read_number(const std::filesystem::path& path) {
  std::ifstream file(path);
  size_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

struct CgroupFiles {
  const char* hierarchy;  // below /sys/fs/cgroup
  const char* limit;
  const char* usage;
  const char* droppable;  // field of memory.stat
};
constexpr CgroupFiles kVersion2{"", "memory.max", "memory.current", "inactive_file"};
constexpr CgroupFiles kVersion1{"memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"};

size_t left_in(const std::filesystem::path& folder, const CgroupFiles& files) {
  const std::optional<size_t> limit = read_number(folder / files.limit);
  const std::optional<size_t> usage = read_number(folder / files.usage);
  if (!limit || !usage) return kUnlimited;
  const size_t droppable = read_field(folder / "memory.stat", files.droppable).value_or(0);
  const size_t held = *usage - std::min(droppable, *usage);
  return *limit > held ? *limit - held : 0;
}

// A cgroup's limit binds its descendants too.
size_t left_up_to_root(const std::filesystem::path& root, std::string_view group, const CgroupFiles& files) {
  const std::filesystem::path top = root / "sys/fs/cgroup" / files.hierarchy;
  size_t left = left_in(top, files);
  std::filesystem::path folder = top;
  for (const auto& part : std::filesystem::path(group).relative_path()) {
    folder /= part;
    left = std::min(left, left_in(folder, files));
  }
  return left;
}

}  // namespace

size_t available_memory_bytes(const std::filesystem::path& root) {
  size_t available = read_field(root / "proc/meminfo", "MemAvailable:").value_or(0) * 1024;
  // Lines "0::/path" (v2) and "9:memory:/path" (v1).
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t controllers = line.find(':'), path = line.find(':', controllers + 1);
    if (controllers == std::string::npos || path == std::string::npos) continue;
    const std::string names = "," + line.substr(controllers + 1, path - controllers - 1) + ",";
    const std::string_view group = std::string_view(line).substr(path + 1);
    if (names == ",,") available = std::min(available, left_up_to_root(root, group, kVersion2));
    if (names.find(",memory,") != std::string::npos)
      available = std::min(available, left_up_to_root(root, group, kVersion1));
  }
  return available;
}

}  // namespace plait
