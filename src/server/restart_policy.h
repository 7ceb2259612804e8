// When a dead engine is started again, and when the server gives up. A pure value; not thread safe.
#pragma once

#include <chrono>
#include <deque>
#include <optional>

namespace plait {

class RestartPolicy {
 public:
  using Clock = std::chrono::steady_clock;

  RestartPolicy(int max_restarts, std::chrono::seconds window) : max_restarts_(max_restarts), window_(window) {}

  // The engine died at `now`: how long to wait before starting it again, or nothing if it died more than `max_restarts`
  // times within the window. `made_progress`: it did some work before. One that did is started again at once; those
  // that die one after the other without any are started ever more slowly.
  std::optional<std::chrono::milliseconds> after_death(Clock::time_point now, bool made_progress);
  int recent_deaths() const { return static_cast<int>(deaths_.size()); }

 private:
  int max_restarts_;
  std::chrono::seconds window_;
  std::deque<Clock::time_point> deaths_;
  int fruitless_ = 0;  // deaths in a row without progress before them
};

}  // namespace plait
