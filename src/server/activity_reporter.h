// Says in the log what this process is doing, each time it gets SIGUSR1: its ranks, and before they serve its start.
//
// Owns a thread of its own that waits for the signal, so that it answers whatever the others hang in. Make it before
// other threads are started: the signal is blocked in the calling thread and those that it starts from then on.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "comm/world.h"
#include "engine/start_records.h"

namespace plait {

class ActivityReporter {
 public:
  ActivityReporter();
  ~ActivityReporter();
  ActivityReporter(const ActivityReporter&) = delete;
  ActivityReporter& operator=(const ActivityReporter&) = delete;

  // Whose ranks; before that there are none. Any thread.
  void watch(const std::shared_ptr<comm::World>& world);
  // What all hosts are at while the engine starts, in the place of the records before. Any thread.
  void watch_start(std::vector<StartRecord> of_all_hosts);

 private:
  void run();
  void report();

  std::mutex mutex_;  // of what follows
  std::weak_ptr<comm::World> world_;
  std::vector<StartRecord> start_;
  std::chrono::steady_clock::time_point start_at_;

  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace plait
