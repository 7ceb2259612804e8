// Values as bytes, for another process of the same build: little-endian numbers and counted sequences.
//
// A message lists its fields once, in a describe function that takes WriteFields or ReadFields: writing and reading
// walk the same list, so they cannot disagree. Readers trust nothing: every read is bounds-checked, every count is
// checked against the bytes that are left before anything is allocated. Values only.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/error.h"

namespace plait {

// Appends fields to a payload.
class FieldWriter {
 public:
  // Leaves room in front, for a header.
  explicit FieldWriter(size_t header_bytes = 0) : bytes_(header_bytes, '\0') {}

  template <typename T>
    requires std::is_arithmetic_v<T>
  void number(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void boolean(bool value) { number<uint8_t>(value); }
  void text(std::string_view value) {
    number<uint64_t>(value.size());
    bytes_.append(value);
  }
  template <typename T>
    requires std::is_arithmetic_v<T>
  void numbers(const std::vector<T>& values) {
    number<uint64_t>(values.size());
    bytes_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  }
  template <typename T>
  void optional(const std::optional<T>& value) {
    boolean(value.has_value());
    if (value) number(*value);
  }
  template <typename T, typename Write>
  void sequence(const std::vector<T>& values, Write&& write) {
    number<uint64_t>(values.size());
    for (const T& value : values) write(value);
  }

  size_t size() const { return bytes_.size(); }
  std::string take() && { return std::move(bytes_); }

 private:
  std::string bytes_;
};

// Takes fields off a payload, which it does not trust. After the first violation every further read gives zeros, and
// status() tells.
class FieldReader {
 public:
  explicit FieldReader(std::string_view payload) : rest_(payload) {}

  template <typename T>
    requires std::is_arithmetic_v<T>
  T number() {
    T value{};
    if (take(sizeof value)) std::memcpy(&value, taken_.data(), sizeof value);
    return value;
  }
  bool boolean();
  std::string text();
  template <typename T>
    requires std::is_arithmetic_v<T>
  std::vector<T> numbers() {
    std::vector<T> values(count(sizeof(T)));
    if (take(values.size() * sizeof(T)) && !values.empty()) std::memcpy(values.data(), taken_.data(), taken_.size());
    return values;
  }
  template <typename T>
  std::optional<T> optional() {
    if (!boolean()) return std::nullopt;
    return number<T>();
  }
  // An enumerator in [0, last].
  template <typename E>
  E enumerator(E last) {
    const auto value = number<uint8_t>();
    if (value > static_cast<uint8_t>(last)) fail("an enumerator is out of range");
    return ok_ ? static_cast<E>(value) : E{};
  }
  // `element_bytes`: the least that one element takes, so that a false count cannot make us allocate.
  template <typename T, typename Read>
  std::vector<T> sequence(size_t element_bytes, Read&& read) {
    std::vector<T> values;
    const size_t size = count(element_bytes);
    values.reserve(size);
    for (size_t i = 0; i < size && ok_; ++i) values.push_back(read());
    return values;
  }

  void fail(const char* what);  // the caller found a violation itself
  // kCorrupt if a read failed or bytes are left over.
  Status status() const;

 private:
  bool take(size_t bytes);
  size_t count(size_t element_bytes);

  std::string_view rest_;
  std::string_view taken_;
  const char* problem_ = nullptr;
  bool ok_ = true;
};

}  // namespace plait
