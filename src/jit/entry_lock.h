// The file that says "somebody is building this kernel", so that others wait instead of building it too.
//
// Made whole, as a link to a file written before, or with O_EXCL where there are no links: flock is missing or local on
// some network file systems. It says which process made it; that one touches it again and again (lock_keeper.h). Taken
// over when its owner has ended (seen at once on the same host) or when it was not refreshed for `stale_after`: by the
// clock of the file server, or, should that clock jump, unchanged for so long while we watched. Two processes may both
// come to hold it when several take over at the same moment: then a kernel is built twice, and nothing else happens,
// because entries are named by their content and appear whole. One thread at a time.
#pragma once

#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "jit/cache_files.h"

namespace plait::jit {

class EntryLock {
 public:
  EntryLock(std::shared_ptr<CacheFiles> files, std::filesystem::path file, std::chrono::milliseconds stale_after);
  ~EntryLock();  // releases
  EntryLock(const EntryLock&) = delete;
  EntryLock& operator=(const EntryLock&) = delete;

  enum class Outcome {
    kMine,
    kTheirs,   // somebody else's, or it has just been let go: try again a little later
    kNoLocks,  // no such file can be made here, or an abandoned one not removed: problem() says why
  };
  Outcome try_lock();
  void release();  // removes it, unless somebody has taken it over
  // For the leftovers of processes that were killed: removes the lock if its owner has ended or it is stale.
  bool remove_if_abandoned();

  const std::filesystem::path& file() const { return file_; }
  int problem() const { return problem_; }             // an errno
  const std::string& owner() const { return owner_; }  // of the lock that try_lock found: "host n3, process 4711"
  bool took_over() const { return took_over_; }

 private:
  using Clock = std::chrono::steady_clock;

  int make(const std::string& text);  // 0 or an errno: EEXIST if somebody has it
  bool is_abandoned(const FileContents& lock);
  bool is_stale(const FileContents& lock);
  int take_away(const FileContents& lock);  // 0 or an errno

  const std::shared_ptr<CacheFiles> files_;
  const std::filesystem::path file_;
  const std::chrono::milliseconds stale_after_;
  std::string text_;  // what we wrote into it; empty: not ours
  std::string owner_;
  int problem_ = 0;
  bool took_over_ = false;
  int64_t seen_modified_ns_ = 0;
  Clock::time_point seen_since_;
  std::optional<Clock::time_point> probed_;
};

// A name for a temporary file in a cache directory that no other process, thread or moment has; and, of the process
// that made one, the token (process_identity.h), or empty.
std::string temporary_name();
std::string_view token_of_temporary(std::string_view name);

// Now, by the clock of the server that holds `directory`, since 1970; absent where nothing can be written.
std::optional<int64_t> server_now_ns(CacheFiles& files, const std::filesystem::path& directory);

}  // namespace plait::jit
