// The directory of a kernel cache: entries are read, checked, and put in place as a whole. No locks, no memory.
//
// Owned by a KernelCache (cache.h says what holds for the directory and who is trusted). Nothing here is an error: what
// cannot be read is not there, what cannot be written is said once for each reason. Safe from any thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "jit/cache_files.h"
#include "jit/compiler.h"

namespace plait::jit {

class KernelStore {
 public:
  using Warn = std::function<void(std::string_view)>;
  KernelStore(std::filesystem::path directory, std::shared_ptr<CacheFiles> files, Warn warn);

  // Whole, right and trusted; else as if it were not there.
  std::optional<CompiledKernel> load(const KernelSource& source, const Digest& key);
  bool publish(const KernelSource& source, const Digest& key, const CompilerIdentity& compiler,
               const CompiledKernel& kernel);

  // Once: removes what processes that were killed have left behind (temporary files, locks).
  void sweep(std::chrono::milliseconds stale_after);
  bool make_directory();
  std::filesystem::path lock_of(const KernelSource& source, const Digest& key) const;

  const std::filesystem::path& directory() const { return directory_; }
  uint64_t rejected() const;  // entries that were there and not used, each counted once

 private:
  int put_in_place(const std::filesystem::path& entry, std::string_view bytes);
  int replace(const std::filesystem::path& from, const std::filesystem::path& entry);
  void warn_once(int reason, const std::string& text);
  void reject(const std::filesystem::path& entry, const std::string& why);
  void remove_temporary(const std::string& name);

  const std::filesystem::path directory_;
  const std::shared_ptr<CacheFiles> files_;
  const Warn warn_;
  std::once_flag swept_;
  mutable std::mutex mutex_;
  std::set<int> warned_;  // errno
  std::set<std::filesystem::path> rejected_entries_;
};

}  // namespace plait::jit
