// Division and multiples, rounded up. For numbers that are not negative.
#pragma once

#include <cstdint>

namespace plait {

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return ceil_div(value, multiple) * multiple;
}

}  // namespace plait
