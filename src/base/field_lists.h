// Structs as fields: a describe function lists the fields of a struct once, for both directions.
//
// It takes WriteFields and a struct, or ReadFields and a struct to be filled: writing and reading walk the same list,
// so they cannot disagree. It takes the struct apart by a structured binding, which stops the compiler when a field is
// added and forgotten there. Values only.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include <boost/json/serialize.hpp>

#include "base/fields.h"
#include "base/json.h"

namespace plait {

// Writes what a describe function lists.
class WriteFields {
 public:
  explicit WriteFields(size_t header_bytes = 0) : out(header_bytes) {}
  template <typename T>
    requires std::is_arithmetic_v<T>
  void operator()(const T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      out.boolean(value);
    } else {
      out.number(value);
    }
  }
  void operator()(const std::string& value) { out.text(value); }
  void operator()(const std::chrono::seconds& value) { out.number<int64_t>(value.count()); }
  template <typename T>
    requires std::is_arithmetic_v<T>
  void operator()(const std::vector<T>& values) {
    out.numbers(values);
  }
  template <typename T>
  void operator()(const std::optional<T>& value) {
    out.optional(value);
  }
  template <typename E>
  void enumerator(const E& value, E) {
    out.number(static_cast<uint8_t>(value));
  }
  template <typename T, typename Fields>
  void sequence(const std::vector<T>& values, size_t, Fields&& fields) {
    out.sequence(values, [&](const T& value) { fields(*this, value); });
  }
  template <typename T, typename Fields>
  void optional(const std::optional<T>& value, Fields&& fields) {
    out.boolean(value.has_value());
    if (value) fields(*this, *value);
  }
  void milliseconds(const std::optional<std::chrono::milliseconds>& value) {
    optional(value,
             [](WriteFields& io, const std::chrono::milliseconds& limit) { io.out.number<int64_t>(limit.count()); });
  }
  void json(const boost::json::object& value) { out.text(boost::json::serialize(value)); }

  FieldWriter out;
};

// Reads it.
class ReadFields {
 public:
  explicit ReadFields(std::string_view payload) : in(payload) {}
  template <typename T>
    requires std::is_arithmetic_v<T>
  void operator()(T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      value = in.boolean();
    } else {
      value = in.number<T>();
    }
  }
  void operator()(std::string& value) { value = in.text(); }
  void operator()(std::chrono::seconds& value) { value = std::chrono::seconds(in.number<int64_t>()); }
  template <typename T>
    requires std::is_arithmetic_v<T>
  void operator()(std::vector<T>& values) {
    values = in.numbers<T>();
  }
  template <typename T>
  void operator()(std::optional<T>& value) {
    value = in.optional<T>();
  }
  template <typename E>
  void enumerator(E& value, E last) {
    value = in.enumerator(last);
  }
  template <typename T, typename Fields>
  void sequence(std::vector<T>& values, size_t element_bytes, Fields&& fields) {
    values = in.sequence<T>(element_bytes, [&] {
      T value{};
      fields(*this, value);
      return value;
    });
  }
  template <typename T, typename Fields>
  void optional(std::optional<T>& value, Fields&& fields) {
    value.reset();
    if (in.boolean()) fields(*this, value.emplace());
  }
  void milliseconds(std::optional<std::chrono::milliseconds>& value) {
    optional(value, [](ReadFields& io, std::chrono::milliseconds& limit) {
      limit = std::chrono::milliseconds(io.in.number<int64_t>());
    });
  }
  void json(boost::json::object& value) {
    auto parsed = plait::json::parse_object(in.text());
    if (parsed.has_error()) {
      in.fail("a JSON object was expected");
    } else {
      value = std::move(parsed).value();
    }
  }

  FieldReader in;
};

template <typename IO, typename... Fields>
void fields(IO& io, Fields&... values) {
  (io(values), ...);
}

// The struct that exactly these bytes are; kCorrupt if they are not one.
template <typename M, typename Describe>
Result<M> decode_with(std::string_view bytes, const Describe& describe) {
  ReadFields read(bytes);
  M message;
  describe(read, message);
  PLAIT_RETURN_IF_ERROR(read.in.status());
  return message;
}

}  // namespace plait
