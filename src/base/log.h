// One logger for the process. Lines go to stderr as "[time] level: text", with the prefix of the rank ("engine", "DP1
// TP1") where one was set. Safe from any thread.
#pragma once

#include <string>
#include <string_view>

#include <fmt/format.h>

namespace plait::log {

enum class Level { kDebug, kInfo, kWarning, kError, kOff };

// Accepts SGLang's --log-level words: debug, info, warning, error, critical.
bool parse_level(std::string_view word, Level& level);

// Call once, before other threads start. `prefix` may be empty.
void initialise(Level level, std::string prefix);

bool enabled(Level level);
void write(Level level, std::string_view text);

template <typename... Args>
void debug(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::kDebug)) write(Level::kDebug, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::kInfo)) write(Level::kInfo, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void warning(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::kWarning)) write(Level::kWarning, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void error(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::kError)) write(Level::kError, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace plait::log
