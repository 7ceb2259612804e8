#include "comm/control_frames.h"

#include <fmt/format.h>

namespace plait::comm {
namespace {

constexpr uint32_t kMagic = 0x54434c50;  // "PLCT"

class Writer {
 public:
  void u32(uint32_t value) {
    for (int i = 0; i < 4; ++i) bytes_.push_back(static_cast<uint8_t>(value >> (8 * i)));
  }
  void raw(std::span<const uint8_t> data) { bytes_.insert(bytes_.end(), data.begin(), data.end()); }
  void string(std::string_view text) {
    u32(static_cast<uint32_t>(text.size()));
    raw({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  }
  std::vector<uint8_t> take() { return std::move(bytes_); }

 private:
  std::vector<uint8_t> bytes_;
};

// Reads past the end give zeros and are noted.
class Reader {
 public:
  explicit Reader(std::span<const uint8_t> bytes) : bytes_(bytes) {}
  uint32_t u32() {
    uint32_t value = 0;
    const auto part = take(4);
    for (size_t i = 0; i < part.size(); ++i) value |= uint32_t{part[i]} << (8 * i);
    return value;
  }
  std::span<const uint8_t> take(size_t count) {
    if (count > bytes_.size()) {
      ok_ = false;
      bytes_ = {};
      return {};
    }
    const auto part = bytes_.first(count);
    bytes_ = bytes_.subspan(count);
    return part;
  }
  template <size_t N>
  std::array<uint8_t, N> array() {
    std::array<uint8_t, N> value{};
    const auto part = take(N);
    std::copy(part.begin(), part.end(), value.begin());
    return value;
  }
  std::string string() {
    const auto part = take(u32());
    return {part.begin(), part.end()};
  }
  bool ok() const { return ok_; }
  Status finish(std::string_view what) const {
    if (ok_ && bytes_.empty()) return {};
    return corrupt(fmt::format("control connection: a {} of the wrong length", what));
  }

 private:
  std::span<const uint8_t> bytes_;
  bool ok_ = true;
};

void write_join(Writer& writer, const Join& join) {
  writer.u32(join.version);
  writer.string(join.plait_version);
  writer.raw(join.nonce);
  writer.u32(join.nodes);
  writer.u32(join.node);
  writer.u32(join.ranks);
  writer.string(join.host_name);
  writer.u32(static_cast<uint32_t>(join.configuration.size()));
  for (const auto& [key, value] : join.configuration) {
    writer.string(key);
    writer.string(value);
  }
}

}  // namespace

std::vector<uint8_t> make_frame(FrameType type, std::span<const uint8_t> payload) {
  Writer writer;
  writer.u32(kMagic);
  writer.u32(static_cast<uint32_t>(type));
  writer.u32(static_cast<uint32_t>(payload.size()));
  writer.raw(payload);
  return writer.take();
}

Result<std::optional<Frame>> first_frame(std::span<const uint8_t> bytes) {
  // A stranger is known by the first byte that differs: no need to wait for twelve.
  for (size_t i = 0; i < std::min<size_t>(bytes.size(), 4); ++i)
    if (bytes[i] != static_cast<uint8_t>(kMagic >> (8 * i))) return corrupt("control connection: this is not plait");
  if (bytes.size() < kFrameHeaderBytes) return std::optional<Frame>();
  Reader reader(bytes);
  reader.u32();
  const uint32_t type = reader.u32();
  const uint32_t length = reader.u32();
  if (length > kMaxFrameBytes)
    return corrupt(fmt::format("control connection: a frame of {} bytes, the limit is {}", length, kMaxFrameBytes));
  if (type < static_cast<uint32_t>(FrameType::kHello) || type > static_cast<uint32_t>(FrameType::kNote))
    return corrupt(fmt::format("control connection: a frame of unknown type {}", type));
  if (bytes.size() - kFrameHeaderBytes < length) return std::optional<Frame>();
  return std::optional(
      Frame{static_cast<FrameType>(type), bytes.subspan(kFrameHeaderBytes, length), kFrameHeaderBytes + length});
}

std::vector<uint8_t> encode(const Hello& hello) {
  Writer writer;
  writer.u32(hello.version);
  writer.string(hello.plait_version);
  writer.raw(hello.nonce);
  return writer.take();
}

Result<Hello> decode_hello(std::span<const uint8_t> payload) {
  Reader reader(payload);
  Hello hello;
  hello.version = reader.u32();
  hello.plait_version = reader.string();
  if (reader.ok() && hello.version != kControlVersion) return hello;
  hello.nonce = reader.array<16>();
  PLAIT_RETURN_IF_ERROR(reader.finish("greeting"));
  return hello;
}

std::vector<uint8_t> encode(const Join& join) {
  Writer writer;
  write_join(writer, join);
  writer.raw(join.proof);
  return writer.take();
}

Result<Join> decode_join(std::span<const uint8_t> payload) {
  Reader reader(payload);
  Join join;
  join.version = reader.u32();
  join.plait_version = reader.string();
  if (reader.ok() && join.version != kControlVersion) return join;
  join.nonce = reader.array<16>();
  join.nodes = reader.u32();
  join.node = reader.u32();
  join.ranks = reader.u32();
  join.host_name = reader.string();
  const uint32_t entries = reader.u32();
  for (uint32_t i = 0; i < entries && reader.ok(); ++i) {
    std::string key = reader.string();
    std::string value = reader.string();
    join.configuration.emplace_back(std::move(key), std::move(value));
  }
  join.proof = reader.array<32>();
  PLAIT_RETURN_IF_ERROR(reader.finish("request to join"));
  return join;
}

std::vector<uint8_t> encode(const std::vector<TableEntry>& table) {
  Writer writer;
  writer.u32(static_cast<uint32_t>(table.size()));
  for (const TableEntry& entry : table) {
    writer.string(entry.host);
    writer.u32(entry.ranks);
  }
  return writer.take();
}

Result<std::vector<TableEntry>> decode_table(std::span<const uint8_t> payload) {
  Reader reader(payload);
  std::vector<TableEntry> table;
  const uint32_t entries = reader.u32();
  for (uint32_t i = 0; i < entries && reader.ok(); ++i) {
    std::string host = reader.string();
    const uint32_t ranks = reader.u32();
    table.push_back({std::move(host), ranks});
  }
  PLAIT_RETURN_IF_ERROR(reader.finish("table of nodes"));
  return table;
}

std::vector<uint8_t> encode(const std::vector<std::vector<uint8_t>>& blobs) {
  Writer writer;
  writer.u32(static_cast<uint32_t>(blobs.size()));
  for (const auto& blob : blobs) {
    writer.u32(static_cast<uint32_t>(blob.size()));
    writer.raw(blob);
  }
  return writer.take();
}

Result<std::vector<std::vector<uint8_t>>> decode_blobs(std::span<const uint8_t> payload) {
  Reader reader(payload);
  std::vector<std::vector<uint8_t>> blobs;
  const uint32_t entries = reader.u32();
  for (uint32_t i = 0; i < entries && reader.ok(); ++i) {
    const auto part = reader.take(reader.u32());
    blobs.emplace_back(part.begin(), part.end());
  }
  PLAIT_RETURN_IF_ERROR(reader.finish("list of blobs"));
  return blobs;
}

std::vector<uint8_t> encode(const Failure& failure) {
  Writer writer;
  writer.u32(static_cast<uint32_t>(failure.kind));
  writer.u32(static_cast<uint32_t>(failure.rank));
  writer.u32(static_cast<uint32_t>(failure.node));
  writer.string(std::string_view(failure.message).substr(0, kMaxFrameBytes / 2));
  return writer.take();
}

Result<Failure> decode_failure(std::span<const uint8_t> payload) {
  Reader reader(payload);
  Failure failure;
  const uint32_t kind = reader.u32();
  failure.rank = static_cast<int32_t>(reader.u32());
  failure.node = static_cast<int32_t>(reader.u32());
  failure.message = reader.string();
  PLAIT_RETURN_IF_ERROR(reader.finish("cancellation"));
  if (kind > static_cast<uint32_t>(FailureKind::kCancelled))
    return corrupt(fmt::format("control connection: a cancellation of unknown kind {}", kind));
  failure.kind = static_cast<FailureKind>(kind);
  return failure;
}

std::vector<uint8_t> encode(const Question& question) {
  Writer writer;
  for (const uint32_t value : {question.number, question.from, question.to, question.group, question.call})
    writer.u32(value);
  return writer.take();
}

Result<Question> decode_question(std::span<const uint8_t> payload) {
  Reader reader(payload);
  Question question;
  for (uint32_t* value : {&question.number, &question.from, &question.to, &question.group, &question.call})
    *value = reader.u32();
  PLAIT_RETURN_IF_ERROR(reader.finish("question"));
  return question;
}

std::vector<uint8_t> encode(const Answer& answer) {
  Writer writer;
  for (const uint32_t value :
       {answer.number, answer.from, answer.to, static_cast<uint32_t>(answer.late_members.size())})
    writer.u32(value);
  for (const uint32_t member : answer.late_members) writer.u32(member);
  return writer.take();
}

Result<Answer> decode_answer(std::span<const uint8_t> payload) {
  Reader reader(payload);
  Answer answer;
  for (uint32_t* value : {&answer.number, &answer.from, &answer.to}) *value = reader.u32();
  const uint32_t entries = reader.u32();
  for (uint32_t i = 0; i < entries && reader.ok(); ++i) answer.late_members.push_back(reader.u32());
  PLAIT_RETURN_IF_ERROR(reader.finish("answer"));
  return answer;
}

Digest join_proof(std::string_view secret, const Nonce& server, const Join& join) {
  Writer writer;
  writer.string("plait join");
  writer.raw(server);
  write_join(writer, join);
  return hmac_sha256(secret, writer.take());
}

Digest welcome_proof(std::string_view secret, const Nonce& server, const Nonce& client) {
  Writer writer;
  writer.string("plait welcome");
  writer.raw(client);
  writer.raw(server);
  return hmac_sha256(secret, writer.take());
}

}  // namespace plait::comm
