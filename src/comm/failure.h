// Why a world of ranks stopped, and the token through which one rank's failure ends the waits of all others.
//
// One Cancellation per world and process, shared by all its groups and links; safe from any thread. The first failure
// counts, later ones are ignored: they are its consequences.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>

#include "base/error.h"

namespace plait::comm {

enum class FailureKind : uint8_t {
  kPeerTimeout,  // a peer did not come before the deadline
  kMismatch,     // ranks made calls that do not belong together
  kPeerLost,     // a peer's process ended or closed its connection
  kCancelled,    // somebody called cancel()
};

struct Failure {
  FailureKind kind = FailureKind::kCancelled;
  int32_t rank = -1;  // the one to blame, in the world's numbering; -1: not one rank
  int32_t node = -1;  // its process; -1: not one process
  std::string message;
};

// For the rank that failed: kDeadline, kInternal, kUnavailable or kCancelled.
Error to_error(const Failure& failure);
// For everybody else: kCancelled, "cancelled: <the first failure>".
Error to_cancelled_error(const Failure& failure);

class Cancellation {
 public:
  bool cancelled() const { return cancelled_.load(std::memory_order_seq_cst); }
  // True if this failure is the first. Calls every watcher, and returns after that.
  bool cancel(Failure failure);
  Failure failure() const;  // empty message: none
  Error error() const { return to_cancelled_error(failure()); }

  // `wake` is called once, from the thread that cancels, with the token locked: it must only wake others. It is called
  // at once if the token is cancelled already.
  uint64_t watch(std::function<void()> wake);
  void unwatch(uint64_t watcher);  // afterwards `wake` neither runs nor will run

 private:
  std::atomic<bool> cancelled_{false};
  mutable std::mutex mutex_;
  Failure failure_;
  uint64_t next_watcher_ = 1;
  std::map<uint64_t, std::function<void()>> watchers_;
};

}  // namespace plait::comm
