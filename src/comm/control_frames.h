// What processes say to each other over their control connections: "PLCT", type, length, payload.
//
// Plain functions over bytes from strangers: they check every length, allocate no more than was sent, and return
// kCorrupt for what they don't understand. Integers are little-endian, strings have a 32-bit length. Any thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "comm/failure.h"
#include "comm/hmac.h"

namespace plait::comm {

inline constexpr uint32_t kControlVersion = 2;
inline constexpr size_t kMaxFrameBytes = 256 << 10;
inline constexpr size_t kFrameHeaderBytes = 12;

enum class FrameType : uint32_t {
  kHello = 1,  // node 0 to whoever connects
  kJoin,       // answer, with the proof that the secret is known
  kWelcome,    // accepted, with node 0's own proof
  kRefuse,     // not accepted; says why
  kTable,      // all nodes, once all have joined
  kBlob,       // one node's part of an exchange
  kBlobs,      // everybody's
  kCancel,     // the world has failed
  kGoodbye,    // this node leaves in peace; from node 0: all do
  kQuestion,   // which ranks of yours have not made this call? Passed on by node 0
  kAnswer,     // to the one who asked
  kNote,       // to node 0: what this node is doing, any bytes; the last one counts
};

struct Frame {
  FrameType type = FrameType::kHello;
  std::span<const uint8_t> payload;
  size_t bytes = 0;  // of header and payload
};

std::vector<uint8_t> make_frame(FrameType type, std::span<const uint8_t> payload);
// The frame at the beginning of `bytes`; empty: more bytes are needed.
Result<std::optional<Frame>> first_frame(std::span<const uint8_t> bytes);

using Nonce = std::array<uint8_t, 16>;

// version comes first in both, for ever: other versions must be able to read it.
struct Hello {
  uint32_t version = kControlVersion;
  std::string plait_version;
  Nonce nonce{};
};
struct Join {
  uint32_t version = kControlVersion;
  std::string plait_version;
  Nonce nonce{};
  uint32_t nodes = 0;
  uint32_t node = 0;
  uint32_t ranks = 0;
  std::string host_name;
  std::vector<std::pair<std::string, std::string>> configuration;
  Digest proof{};
};
struct TableEntry {
  std::string host;
  uint32_t ranks = 0;
};

struct Question {
  uint32_t number = 0;  // of the asking node
  uint32_t from = 0;    // nodes
  uint32_t to = 0;
  uint32_t group = 0;  // Group::slot_prefix
  uint32_t call = 0;
};
struct Answer {
  uint32_t number = 0;
  uint32_t from = 0;
  uint32_t to = 0;
  std::vector<uint32_t> late_members;  // positions in the group
};

std::vector<uint8_t> encode(const Hello& hello);
std::vector<uint8_t> encode(const Join& join);
std::vector<uint8_t> encode(const std::vector<TableEntry>& table);
std::vector<uint8_t> encode(const std::vector<std::vector<uint8_t>>& blobs);
std::vector<uint8_t> encode(const Failure& failure);
std::vector<uint8_t> encode(const Question& question);
std::vector<uint8_t> encode(const Answer& answer);
// Of another version only the version is read.
Result<Hello> decode_hello(std::span<const uint8_t> payload);
Result<Join> decode_join(std::span<const uint8_t> payload);
Result<std::vector<TableEntry>> decode_table(std::span<const uint8_t> payload);
Result<std::vector<std::vector<uint8_t>>> decode_blobs(std::span<const uint8_t> payload);
Result<Failure> decode_failure(std::span<const uint8_t> payload);
Result<Question> decode_question(std::span<const uint8_t> payload);
Result<Answer> decode_answer(std::span<const uint8_t> payload);

// What the joining node, and node 0 in its answer, prove: HMAC of both nonces and all that was said.
Digest join_proof(std::string_view secret, const Nonce& server, const Join& join);
Digest welcome_proof(std::string_view secret, const Nonce& server, const Nonce& client);

}  // namespace plait::comm
