#include "server/frames.h"

#include <bit>

namespace plait {

static_assert(std::endian::native == std::endian::little, "frames are written as they lie in memory");

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

Result<std::string> FieldWriter::finish(FrameKind kind) && {
  const Header header{.kind = static_cast<uint16_t>(kind), .payload_bytes = bytes_.size() - kFrameHeaderBytes};
  if (header.payload_bytes > kMaxFramePayloadBytes) {
    return invalid(fmt::format("a message of {} bytes for the other process is larger than the limit of {}",
                               header.payload_bytes, kMaxFramePayloadBytes));
  }
  std::memcpy(bytes_.data(), &header, sizeof header);
  return std::move(bytes_);
}

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
  if (!ok_) return corrupt(fmt::format("broken frame: {}", problem_));
  if (!rest_.empty()) return corrupt(fmt::format("broken frame: {} bytes too many", rest_.size()));
  return {};
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
