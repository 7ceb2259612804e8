// Checks of our own invariants. A failure is a mistake in plait, never a user's; it prints where and aborts, in every
// build.
#pragma once

#include <string_view>

namespace plait {
[[noreturn]] void assertion_failed(const char* condition, const char* file, int line, std::string_view message);
}

#define PLAIT_ASSERT(condition, message)                                    \
  do {                                                                      \
    if (!(condition)) [[unlikely]]                                          \
      ::plait::assertion_failed(#condition, __FILE__, __LINE__, (message)); \
  } while (false)
