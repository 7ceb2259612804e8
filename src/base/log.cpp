#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

namespace plait::log {
namespace {

spdlog::level::level_enum to_spdlog(Level level) {
  switch (level) {
    case Level::kDebug:
      return spdlog::level::debug;
    case Level::kInfo:
      return spdlog::level::info;
    case Level::kWarning:
      return spdlog::level::warn;
    case Level::kError:
      return spdlog::level::err;
    case Level::kOff:
      return spdlog::level::off;
  }
  return spdlog::level::info;
}

spdlog::logger& logger() {
  static const std::shared_ptr<spdlog::logger> instance = [] {
    auto made = spdlog::stderr_logger_mt("plait");
    made->set_pattern("[%Y-%m-%d %H:%M:%S.%e] %l: %v");
    return made;
  }();
  return *instance;
}

}  // namespace

bool parse_level(std::string_view word, Level& level) {
  if (word == "debug")
    level = Level::kDebug;
  else if (word == "info")
    level = Level::kInfo;
  else if (word == "warning" || word == "warn")
    level = Level::kWarning;
  else if (word == "error" || word == "critical")
    level = Level::kError;
  else if (word == "off")
    level = Level::kOff;
  else
    return false;
  return true;
}

void initialise(Level level, std::string prefix) {
  logger().set_level(to_spdlog(level));
  logger().set_pattern(prefix.empty() ? "[%Y-%m-%d %H:%M:%S.%e] %l: %v"
                                      : fmt::format("[%Y-%m-%d %H:%M:%S.%e {}] %l: %v", prefix));
  logger().flush_on(spdlog::level::info);
}

bool enabled(Level level) {
  return logger().should_log(to_spdlog(level));
}

void write(Level level, std::string_view text) {
  logger().log(to_spdlog(level), "{}", text);
}

}  // namespace plait::log
