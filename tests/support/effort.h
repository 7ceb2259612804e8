// How often a test repeats itself. Under a sanitizer programs are 5 to 30 times slower and other mistakes are looked
// for: there every kind of case stays, and fewer of each are drawn. A test that draws says how many it tried.
#pragma once

#include <cstdint>

namespace plait {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

// `full`, or an eighth of it under a sanitizer.
constexpr int64_t repetitions(int64_t full) {
  return kSanitized ? (full + 7) / 8 : full;
}

}  // namespace plait
