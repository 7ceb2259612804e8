// Bytes of the connection between the front end and the engine process: frames of little-endian fields.
//
// A frame is a header (magic, version, kind, payload size) and a payload of fixed-width numbers and counted sequences.
// Neither side trusts the other: every read is bounds-checked, every count is checked against the bytes that are left
// before anything is allocated, and a frame that breaks a rule ends the connection. Values only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/error.h"

namespace plait {

inline constexpr uint32_t kFrameMagic = 0x31544c50;  // "PLT1"
inline constexpr uint16_t kFrameVersion = 1;
inline constexpr size_t kFrameHeaderBytes = 16;
inline constexpr size_t kMaxFramePayloadBytes = size_t{256} << 20;

enum class FrameKind : uint16_t {
  // front end -> engine
  kOptions = 1,
  kSubmit,
  kAbort,
  kFlushCache,
  kShutdown,
  // engine -> front end
  kProgress,
  kReady,
  kFailed,
  kOutputs,
  kLoad,
  kFlushed,
};
inline constexpr uint16_t kLastFrameKind = static_cast<uint16_t>(FrameKind::kFlushed);

struct Frame {
  FrameKind kind = FrameKind::kLoad;
  std::string payload;
};

// Appends fields to a payload.
class FieldWriter {
 public:
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
  // Header and payload, ready to be sent. kInvalid if the payload is beyond kMaxFramePayloadBytes.
  Result<std::string> finish(FrameKind kind) &&;

 private:
  std::string bytes_ = std::string(kFrameHeaderBytes, '\0');
};

// Takes fields off a payload. After the first violation every further read gives zeros, and status() tells.
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

// Cuts a byte stream into frames.
class FrameSplitter {
 public:
  void append(std::string_view bytes) { buffer_.append(bytes); }
  // The next whole frame, nothing if more bytes are needed, or kCorrupt (then the stream is of no more use).
  Result<std::optional<Frame>> next();

 private:
  std::string buffer_;
  size_t consumed_ = 0;
};

}  // namespace plait
