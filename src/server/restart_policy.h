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
  // times within the window.
  std::optional<std::chrono::milliseconds> after_death(Clock::time_point now);
  int recent_deaths() const { return static_cast<int>(deaths_.size()); }

 private:
  int max_restarts_;
  std::chrono::seconds window_;
  std::deque<Clock::time_point> deaths_;
};

}  // namespace plait
