#include "comm/failure.h"

namespace plait::comm {

Error to_error(const Failure& failure) {
  switch (failure.kind) {
    case FailureKind::kPeerTimeout:
      return deadline_exceeded(failure.message);
    case FailureKind::kMismatch:
      return internal(failure.message);
    case FailureKind::kPeerLost:
      return unavailable(failure.message);
    case FailureKind::kCancelled:
      break;
  }
  return plait::cancelled(failure.message);
}

Error to_cancelled_error(const Failure& failure) {
  return plait::cancelled("cancelled: " + failure.message);
}

bool Cancellation::cancel(Failure failure) {
  std::lock_guard lock(mutex_);
  if (cancelled_.load(std::memory_order_relaxed)) return false;
  failure_ = std::move(failure);
  cancelled_.store(true, std::memory_order_seq_cst);
  for (auto& [id, wake] : watchers_) wake();
  return true;
}

Failure Cancellation::failure() const {
  std::lock_guard lock(mutex_);
  return failure_;
}

uint64_t Cancellation::watch(std::function<void()> wake) {
  std::lock_guard lock(mutex_);
  if (cancelled_.load(std::memory_order_relaxed)) wake();
  const uint64_t id = next_watcher_++;
  watchers_.emplace(id, std::move(wake));
  return id;
}

void Cancellation::unwatch(uint64_t watcher) {
  std::lock_guard lock(mutex_);
  watchers_.erase(watcher);
}

}  // namespace plait::comm
