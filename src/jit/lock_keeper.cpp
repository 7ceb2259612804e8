#include "jit/lock_keeper.h"

namespace plait::jit {

LockKeeper::LockKeeper(std::shared_ptr<CacheFiles> files, std::chrono::milliseconds interval)
    : files_(std::move(files)), interval_(interval) {}

LockKeeper::~LockKeeper() {
  {
    const std::scoped_lock lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void LockKeeper::keep(const std::filesystem::path& lock) {
  {
    const std::scoped_lock guard(mutex_);
    locks_.insert(lock);
    if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
  }
  changed_.notify_all();
}

void LockKeeper::let_go(const std::filesystem::path& lock) {
  const std::scoped_lock guard(mutex_);
  locks_.erase(lock);
}

void LockKeeper::run() {
  std::unique_lock guard(mutex_);
  while (!ending_) {
    changed_.wait(guard, [this] { return ending_ || !locks_.empty(); });
    if (changed_.wait_for(guard, interval_, [this] { return ending_; })) return;
    const std::set<std::filesystem::path> locks = locks_;
    // Not while holding the mutex: a file server may take its time. Touching one that has just been let go does
    // nothing, or refreshes its next owner's.
    guard.unlock();
    for (const auto& lock : locks) files_->touch(lock);
    guard.lock();
  }
}

}  // namespace plait::jit
