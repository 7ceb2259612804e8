// Bytes of the connection between the front end and the engine process: frames.
//
// A frame is a header (magic, version, kind, payload size) and a payload of fields (base/fields.h). Neither side trusts
// the other: a frame that breaks a rule ends the connection. Values only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/fields.h"

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
  kEnded,
};
inline constexpr uint16_t kLastFrameKind = static_cast<uint16_t>(FrameKind::kEnded);

struct Frame {
  FrameKind kind = FrameKind::kLoad;
  std::string payload;
};

// Header and payload, ready to be sent; the writer was made with room for kFrameHeaderBytes. kInvalid if the payload is
// beyond kMaxFramePayloadBytes.
Result<std::string> finish_frame(FieldWriter&& fields, FrameKind kind);

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
