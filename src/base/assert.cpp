#include "base/assert.h"

#include <cstdio>
#include <cstdlib>

namespace plait {

void assertion_failed(const char* condition, const char* file, int line, std::string_view message) {
  fmt::print(stderr, "{}:{}: assertion failed: {}: {}\n", file, line, condition, message);
  std::fflush(stderr);
  std::abort();
}

}  // namespace plait
