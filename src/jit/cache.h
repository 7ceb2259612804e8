// Compiled kernels, kept in memory and in a directory that processes, hosts and users may share.
//
// A KernelCache owns what it has in memory; the directory belongs to everybody who uses it. All calls are safe from any
// thread; threads that ask for one key share one build. Kernels stay in memory as long as the cache does.
//
// On disk an entry is a file NAME-KEY.kernel (cache_entry.h). It is written under another name, synced and renamed, so
// it is there as a whole or not at all; it is checked in full whenever it is read, and built again if anything is wrong
// with it. A lock file (entry_lock.h) lets one process build and the others wait; correctness does not depend on it.
// Whatever goes wrong with the directory (read-only, full, deleted, unreachable) costs the sharing and never a kernel:
// it is said once, and kernels stay in memory. An entry of another compiler or format has another key: it is neither
// used nor touched. A kernel that does not compile is an error for everybody who asks for it, and nothing is kept.
//
// Who is trusted. A kernel is code that runs with the server's data, and a digest does not protect it: who can write an
// entry can write its digest too. So who may write decides. Whoever chose the directory answers for its permissions:
// those who may write to it (owner, group) may give kernels to all who read it, like a folder of programs. Where
// *anybody* may write to the directory, as in /tmp, only entries that belong to this user or to root are used; and an
// entry that anybody may write to is never used. Distrusted entries are built again and replaced where that is
// possible. Names, links and pipes that somebody plants cannot make the cache write elsewhere or wait: files are made
// with O_EXCL and read without following links, as regular files of bounded size. A planted lock delays one kernel by
// wait_limit at most. Entries are readable by others as the umask says, and hold no secrets.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "jit/cache_files.h"
#include "jit/compiler.h"
#include "jit/kernel_source.h"

namespace plait::jit {

// $XDG_CACHE_HOME/plait/kernels, else $HOME/.cache/plait/kernels; empty if neither is set.
std::filesystem::path default_cache_directory();

struct CacheOptions {
  std::filesystem::path directory;  // made when first written to; empty: memory only
  // How long to wait for another process before building beside it.
  std::chrono::milliseconds wait_limit{60'000};
  // An owner on another host that has not refreshed its lock for so long is taken for dead.
  std::chrono::milliseconds stale_after{10'000};
  std::chrono::milliseconds refresh_interval{1'000};  // of own locks
  std::chrono::milliseconds poll_interval{10};        // between looks for what another process builds; grows tenfold
  std::function<void(std::string_view)> warn;         // else log::warning
  std::shared_ptr<CacheFiles> files;                  // else the real ones
};

enum class KernelOrigin {
  kMemory,          // known to this cache, or built by another thread meanwhile
  kDisk,            // was there
  kBuiltHere,       //
  kBuiltElsewhere,  // another process was building it
};
const char* name_of(KernelOrigin origin);

struct CachedKernel {
  std::shared_ptr<const CompiledKernel> kernel;
  KernelOrigin origin = KernelOrigin::kMemory;
  double seconds = 0;  // that the call took
};

struct CacheCounters {
  uint64_t memory = 0, disk = 0, built_here = 0, built_elsewhere = 0;  // answers, by origin
  uint64_t failed = 0;                                                 // kernels that did not compile
  uint64_t rejected = 0;                                               // entries that were damaged or not trusted
  uint64_t unpublished = 0;                                            // kernels that could not be written
  uint64_t taken_over = 0;                                             // locks
  uint64_t unexpected = 0;                                             // compiles after expect_no_builds()
};

class KernelCache {
 public:
  explicit KernelCache(CacheOptions options);
  ~KernelCache();

  // The kernel, from wherever it is had first. Errors: those of Compiler::compile; the directory causes none.
  // `wait_limit`: instead of the options'.
  Result<CachedKernel> get_or_build(const KernelSource& source, Compiler& compiler,
                                    std::optional<std::chrono::milliseconds> wait_limit = std::nullopt);
  // Only if it is in memory or on disk.
  std::optional<CachedKernel> find(const KernelSource& source, const CompilerIdentity& compiler);
  // Takes a kernel that was built elsewhere into memory and onto disk: an entry (cache_entry.h) that another host sent.
  // kInvalid: the source is not valid.
  Status add(const KernelSource& source, const CompilerIdentity& compiler, CompiledKernel kernel);

  // Everything that can ever be needed is here: from now on a compile is a defect. It is done, logged and counted.
  void expect_no_builds();

  CacheCounters counters() const;
  const std::filesystem::path& directory() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace plait::jit
