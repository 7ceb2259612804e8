// Guards the launch of a step: the part of a rank thread's work that puts operations on their way and must not wait.
//
// A rank that waits there for a result (of a copy, another thread, a file) cannot launch the next step while this one
// runs. LaunchRegion marks the region on the thread that enters it; whatever of ours may block says so first with
// about_to_block(). In debug and sanitizer builds that aborts inside a region; release builds count it and warn once.
// Collectives are the exception: on a CPU rank meeting the peers is the operation itself (on a device it goes onto a
// stream), so they open a CollectiveWait. Loops of the rank's own ThreadPool are work, not waiting.
// Each thread has regions of its own; nothing here is shared but the count.
#pragma once

#include <cstdint>

namespace plait {

class LaunchRegion {
 public:
  // `what`: a literal, for the report: "launch of a step".
  explicit LaunchRegion(const char* what);
  ~LaunchRegion();
  LaunchRegion(const LaunchRegion&) = delete;
  LaunchRegion& operator=(const LaunchRegion&) = delete;

  static bool active();  // on this thread, and not inside a CollectiveWait

 private:
  const char* const outer_;
};

class CollectiveWait {
 public:
  CollectiveWait();
  ~CollectiveWait();
  CollectiveWait(const CollectiveWait&) = delete;
  CollectiveWait& operator=(const CollectiveWait&) = delete;

 private:
  const char* const region_;
};

// `operation`: a literal that names what may wait: "reading a file".
void about_to_block(const char* operation);

// Waits inside launch regions so far, on all threads. Stays 0 where they abort.
uint64_t blocked_launches();

}  // namespace plait
