// The start of an engine as a machine: phases in rows, each with its record.
//
// A StartUp belongs to one engine and lives until it is ready. Rows are run by the engine's thread; the phases of one
// row go on beside each other, each but the first on a thread of its own. A thread of the StartUp tells the listener
// what is being done, on this host and, on the first one, on all others; these tell the first one. records() and
// note() may be called by any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "comm/world.h"
#include "engine/engine.h"
#include "engine/start_records.h"

namespace plait {

class StartUp {
 public:
  struct Phase {
    StartPhase phase;
    // `so_far`: an error of a row before, which only agreements are shown.
    std::function<Status(const Status& so_far)> run;
    // Another phase of the row has failed: `run` is to end. May be empty.
    std::function<void(const Error& why)> stop = {};
  };
  struct Row {
    std::vector<Phase> phases;
    bool agreement = false;  // also run after a failure, so that all hosts hear of it
  };

  // `listener` may be null.
  StartUp(int host, int first_rank, int ranks, StartListener* listener);
  ~StartUp();
  StartUp(const StartUp&) = delete;
  StartUp& operator=(const StartUp&) = delete;

  // The listener gets to know the world, and the first host the others' records from now on.
  void join(std::shared_ptr<comm::World> world);

  // Row after row. An error names its phase, and what a lost host was doing; it is the first agreement's, if there is
  // one after it.
  Status run(std::span<const Row> rows);

  // For phases that another host begins and ends.
  void enter(StartPhase phase);
  // What a phase is at.
  void note(StartPhase phase, std::string item, uint64_t done = 0, uint64_t total = 0);
  // Everything has ended; the listener is told and then heard no more.
  void serve();

  std::vector<StartRecord> records() const;  // of this host
  double seconds_of(StartPhase phase) const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Entry {
    StartRecord record;
    Clock::time_point since;
  };

  Status run_row(const Row& row, const Status& so_far);
  bool world_failed() const;
  Error explain(StartPhase phase, Error why) const;
  void begin(StartPhase phase);
  void end(StartPhase phase);
  Entry* find(StartPhase phase);
  void tell();  // the thread

  const int host_, first_rank_, ranks_;
  StartListener* const listener_;

  mutable std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::shared_ptr<comm::World> world_;
  std::vector<Entry> entries_;
  bool news_ = false;    // a phase began or ended: told at once
  bool ending_ = false;  // the thread
  std::thread thread_;
};

}  // namespace plait
