#include "server/restart_policy.h"

#include <algorithm>

namespace plait {
namespace {
// The first restart is immediate: most deaths are single events and clients are waiting.
constexpr std::chrono::milliseconds kFirstDelay{250};
constexpr std::chrono::milliseconds kLongestDelay{10'000};
}  // namespace

std::optional<std::chrono::milliseconds> RestartPolicy::after_death(Clock::time_point now) {
  while (!deaths_.empty() && now - deaths_.front() > window_) deaths_.pop_front();
  deaths_.push_back(now);
  const int deaths = recent_deaths();
  if (deaths > max_restarts_) return std::nullopt;
  if (deaths == 1) return std::chrono::milliseconds(0);
  return std::min(kFirstDelay * (1 << std::min(deaths - 2, 10)), kLongestDelay);
}

}  // namespace plait
