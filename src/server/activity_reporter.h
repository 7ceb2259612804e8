// Says in the log what the ranks of this process are doing, each time the process gets SIGUSR1.
//
// Owns a thread of its own that waits for the signal, so that it answers whatever the others hang in. Make it before
// other threads are started: the signal is blocked in the calling thread and those that it starts from then on.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>

#include "comm/world.h"

namespace plait {

class ActivityReporter {
 public:
  ActivityReporter();
  ~ActivityReporter();
  ActivityReporter(const ActivityReporter&) = delete;
  ActivityReporter& operator=(const ActivityReporter&) = delete;

  // Whose ranks; before that there are none. Any thread.
  void watch(const std::shared_ptr<comm::World>& world);

 private:
  void run();
  void report();

  std::mutex mutex_;
  std::weak_ptr<comm::World> world_;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace plait
