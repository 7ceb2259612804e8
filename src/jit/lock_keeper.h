// Keeps locks fresh while their owner compiles: one thread that touches them, alive while there are any.
//
// Owned by a KernelCache. Safe from any thread.
#pragma once

#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "jit/cache_files.h"

namespace plait::jit {

class LockKeeper {
 public:
  LockKeeper(std::shared_ptr<CacheFiles> files, std::chrono::milliseconds interval);
  ~LockKeeper();

  void keep(const std::filesystem::path& lock);
  void let_go(const std::filesystem::path& lock);

 private:
  void run();

  const std::shared_ptr<CacheFiles> files_;
  const std::chrono::milliseconds interval_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<std::filesystem::path> locks_;
  bool ending_ = false;
  std::thread thread_;  // from the first lock on
};

}  // namespace plait::jit
