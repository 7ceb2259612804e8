#include "base/fields.h"

#include <bit>

namespace plait {

static_assert(std::endian::native == std::endian::little, "fields are written as they lie in memory");

bool FieldReader::take(size_t bytes) {
  if (!ok_ || bytes > rest_.size()) {
    fail("it is shorter than its fields");
    taken_ = {};
    return false;
  }
  taken_ = rest_.substr(0, bytes);
  rest_.remove_prefix(bytes);
  return true;
}

size_t FieldReader::count(size_t element_bytes) {
  const auto value = number<uint64_t>();
  if (value > rest_.size() / element_bytes) {
    fail("a count is larger than the bytes that follow");
    return 0;
  }
  return static_cast<size_t>(value);
}

void FieldReader::fail(const char* what) {
  if (ok_) problem_ = what;
  ok_ = false;
}

bool FieldReader::boolean() {
  const auto value = number<uint8_t>();
  if (value > 1) fail("a boolean is neither 0 nor 1");
  return ok_ && value == 1;
}

std::string FieldReader::text() {
  const size_t size = count(1);
  return take(size) ? std::string(taken_) : std::string();
}

Status FieldReader::status() const {
  if (!ok_) return corrupt(fmt::format("broken message: {}", problem_));
  if (!rest_.empty()) return corrupt(fmt::format("broken message: {} bytes too many", rest_.size()));
  return {};
}

}  // namespace plait
