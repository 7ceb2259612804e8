#include "server/restart_policy.h"

#include <algorithm>

namespace plait {
namespace {
// Most deaths are single events, and clients are waiting: the first restart is immediate.
constexpr std::chrono::milliseconds kFirstDelay{250};
constexpr std::chrono::milliseconds kLongestDelay{10'000};
}  // namespace

std::optional<std::chrono::milliseconds> RestartPolicy::after_death(Clock::time_point now, bool made_progress) {
  while (!deaths_.empty() && now - deaths_.front() > window_) deaths_.pop_front();
  if (deaths_.empty() || made_progress) fruitless_ = 0;
  deaths_.push_back(now);
  if (recent_deaths() > max_restarts_) return std::nullopt;
  if (made_progress || ++fruitless_ == 1) return std::chrono::milliseconds(0);
  return std::min(kFirstDelay * (1 << std::min(fruitless_ - 2, 10)), kLongestDelay);
}

}  // namespace plait
