#include "server/frames.h"

namespace plait {

namespace {

struct Header {
  uint32_t magic = kFrameMagic;
  uint16_t version = kFrameVersion;
  uint16_t kind = 0;
  uint64_t payload_bytes = 0;
};
static_assert(sizeof(Header) == kFrameHeaderBytes);

// A long stream is compacted when this many consumed bytes lie in front.
constexpr size_t kCompactBytes = size_t{1} << 20;

}  // namespace

Result<std::string> finish_frame(FieldWriter&& fields, FrameKind kind) {
  std::string bytes = std::move(fields).take();
  const Header header{.kind = static_cast<uint16_t>(kind), .payload_bytes = bytes.size() - kFrameHeaderBytes};
  if (header.payload_bytes > kMaxFramePayloadBytes) {
    return invalid(fmt::format("a message of {} bytes for the other process is larger than the limit of {}",
                               header.payload_bytes, kMaxFramePayloadBytes));
  }
  std::memcpy(bytes.data(), &header, sizeof header);
  return bytes;
}

Result<std::optional<Frame>> FrameSplitter::next() {
  const std::string_view rest = std::string_view(buffer_).substr(consumed_);
  if (rest.size() < kFrameHeaderBytes) return std::optional<Frame>();
  Header header;
  std::memcpy(&header, rest.data(), sizeof header);
  if (header.magic != kFrameMagic) return corrupt("broken frame: wrong magic number");
  if (header.version != kFrameVersion) {
    return corrupt(fmt::format("frame of version {}, this program speaks {}", header.version, kFrameVersion));
  }
  if (header.kind == 0 || header.kind > kLastFrameKind) {
    return corrupt(fmt::format("broken frame: unknown kind {}", header.kind));
  }
  if (header.payload_bytes > kMaxFramePayloadBytes) {
    return corrupt(fmt::format("broken frame: payload of {} bytes", header.payload_bytes));
  }
  if (rest.size() - kFrameHeaderBytes < header.payload_bytes) return std::optional<Frame>();

  Frame frame{static_cast<FrameKind>(header.kind), std::string(rest.substr(kFrameHeaderBytes, header.payload_bytes))};
  consumed_ += kFrameHeaderBytes + header.payload_bytes;
  if (consumed_ == buffer_.size()) {
    buffer_.clear();
    consumed_ = 0;
  } else if (consumed_ >= kCompactBytes) {
    buffer_.erase(0, consumed_);
    consumed_ = 0;
  }
  return std::optional<Frame>(std::move(frame));
}

}  // namespace plait
