// Messages between the processes of one world, whatever carries them.
//
// A message goes from one node (process) to another under a slot that both name; a slot is used once at a time. Sending
// and receiving begin when the transfer is made and end in wait(). A Transfer refers to the caller's memory until it is
// destroyed, which also gives up what has not been done; after that nobody touches the memory. Links are used by any
// thread, a Transfer by one at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "comm/signal.h"

namespace plait::comm {

class Transfer {
 public:
  enum class End { kDone, kDeadline, kCancelled, kLost };
  virtual ~Transfer() = default;
  // kCancelled: the world's token was cancelled. kLost: the connection is gone; why() says how.
  virtual End wait(Clock::time_point deadline) = 0;
  virtual std::string why() const = 0;
};

class ProcessLink {
 public:
  virtual ~ProcessLink() = default;
  virtual std::unique_ptr<Transfer> send(int node, uint64_t slot, const void* data, size_t bytes) = 0;
  // The message may be shorter than `capacity_bytes`, not longer.
  virtual std::unique_ptr<Transfer> receive(int node, uint64_t slot, void* data, size_t capacity_bytes) = 0;
};

}  // namespace plait::comm
