#include "comm/node_exchange.h"

#include <cstring>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/assert.h"
#include "comm/group.h"

namespace plait::comm {
namespace {

constexpr int64_t kInlineBytes = 64 << 10;  // of blocks behind the records
constexpr int64_t kBlockAlignment = 64;
constexpr uint32_t kMagic = 0x706c4331;  // "plC1"

struct MessageHeader {
  uint32_t magic = kMagic;
  uint32_t call = 0;
  uint64_t ranks_digest = 0;
  uint32_t members = 0;
  uint32_t with_blocks = 0;
  uint64_t header_bytes = 0;  // where the blocks begin
};

int64_t align(int64_t bytes) {
  return (bytes + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment;
}

int64_t records_bytes(size_t members, int group_size) {
  return align(static_cast<int64_t>(
      sizeof(MessageHeader) + members * (sizeof(CallRecord) + sizeof(int64_t) * static_cast<size_t>(group_size))));
}

}  // namespace

template <typename Fn>
void NodeExchange::for_each_block(const Call& call, int source, std::span<const int> destinations, Fn&& fn) const {
  const int n = group_.size();
  if (is_same_for_all(call.record)) {
    fn(block_of(call, source, destinations.front(), n), -1);
    return;
  }
  for (const int destination : destinations) fn(block_of(call, source, destination, n), destination);
}

NodeExchange::NodeExchange(Group& group) : group_(group), ranks_digest_(digest_of(std::as_bytes(group.ranks()))) {
  const World& world = group_.world();
  for (int member = 0; member < group_.size(); ++member) {
    const int node = world.node_of(group_.ranks()[static_cast<size_t>(member)]);
    if (node == world.this_node()) {
      local_members_.push_back(member);
      continue;
    }
    auto peer = std::find_if(peers_.begin(), peers_.end(), [&](const Peer& p) { return p.node == node; });
    if (peer == peers_.end()) {
      peers_.emplace_back().node = node;
      peer = peers_.end() - 1;
    }
    peer->members.push_back(member);
  }
  for (Peer& peer : peers_) {
    for (int parity = 0; parity < 2; ++parity) {
      peer.incoming[static_cast<size_t>(parity)] = Buffer(static_cast<size_t>(incoming_bytes(peer)));
      peer.outgoing[static_cast<size_t>(parity)] =
          Buffer(static_cast<size_t>(records_bytes(local_members_.size(), group_.size()) + kInlineBytes));
    }
  }
  calls_.resize(static_cast<size_t>(group_.size()));
  counts_.resize(static_cast<size_t>(group_.size()));
  blocks_.resize(static_cast<size_t>(group_.size()) * local_members_.size());
}

int64_t NodeExchange::incoming_bytes(const Peer& peer) const {
  return records_bytes(peer.members.size(), group_.size()) + kInlineBytes;
}

// 24 bits of group, 20 of call, 20 of message; the uppermost of those is for messages between two members.
uint64_t NodeExchange::slot(uint32_t call, uint64_t message) const {
  return uint64_t{group_.slot_prefix()} << 40 | uint64_t{call & 0xfffff} << 20 | message;
}

void NodeExchange::expect(Peer& peer, uint32_t call) {
  auto& expected = peer.expected[call & 1];
  Buffer& buffer = peer.incoming[call & 1];
  if (!expected)
    expected = group_.world().link()->receive(peer.node, slot(call, 0), buffer.data(), buffer.size_bytes());
}

const Call& NodeExchange::published(const Seat& seat, int member) const {
  return group_.seat_of(member)->calls[seat.calls_begun & 1];
}

size_t NodeExchange::write_records(std::byte* out, const Seat& seat, bool with_blocks) const {
  MessageHeader header;
  header.call = seat.calls_begun;
  header.ranks_digest = ranks_digest_;
  header.members = static_cast<uint32_t>(local_members_.size());
  header.with_blocks = with_blocks;
  std::byte* at = out + sizeof(header);
  for (const int member : local_members_) {
    const Call& call = published(seat, member);
    std::memcpy(at, &call.record, sizeof(CallRecord));
    at += sizeof(CallRecord);
    if (call.record.operation != Operation::kAllToAll) continue;
    const size_t counts_bytes = sizeof(int64_t) * static_cast<size_t>(group_.size());
    std::memcpy(at, call.counts, counts_bytes);
    at += counts_bytes;
  }
  header.header_bytes = static_cast<uint64_t>(align(at - out));
  std::memcpy(out, &header, sizeof(header));
  return header.header_bytes;
}

void NodeExchange::send_to(Peer& peer, const Seat& seat) {
  ProcessLink& link = *group_.world().link();
  int64_t total_bytes = 0;
  for (const int member : local_members_)
    for_each_block(published(seat, member), member, peer.members,
                   [&](const Block& block, int) { total_bytes += align(block.bytes); });
  const bool with_blocks = total_bytes <= kInlineBytes;
  std::byte* const message = peer.outgoing[seat.calls_begun & 1].as<std::byte>();
  size_t message_bytes = write_records(message, seat, with_blocks);
  if (with_blocks) {
    for (const int member : local_members_) {
      const Call& call = published(seat, member);
      for_each_block(call, member, peer.members, [&](const Block& block, int) {
        if (block.bytes == 0) return;
        std::memcpy(message + message_bytes, call.in + block.offset_bytes, static_cast<size_t>(block.bytes));
        message_bytes += static_cast<size_t>(align(block.bytes));
      });
    }
  }
  sends_.push_back({link.send(peer.node, slot(seat.calls_begun, 0), message, message_bytes), &peer});
  if (with_blocks) return;
  uint64_t number = 0;
  for (const int member : local_members_) {
    const Call& call = published(seat, member);
    for_each_block(call, member, peer.members, [&](const Block& block, int) {
      ++number;
      if (block.bytes == 0) return;
      sends_.push_back({link.send(peer.node, slot(seat.calls_begun, number), call.in + block.offset_bytes,
                                  static_cast<size_t>(block.bytes)),
                        &peer});
    });
  }
}

std::optional<Failure> NodeExchange::read_records(const Peer& peer, const Seat& seat, bool& with_blocks,
                                                  size_t& header_bytes) {
  const std::byte* const message = peer.incoming[seat.calls_begun & 1].as<std::byte>();
  MessageHeader header;
  std::memcpy(&header, message, sizeof(header));
  const int32_t rank = group_.ranks()[static_cast<size_t>(peer.members.front())];
  if (header.magic != kMagic || header.ranks_digest != ranks_digest_ || header.members != peer.members.size() ||
      header.call != seat.calls_begun) {
    return Failure{FailureKind::kMismatch, rank, peer.node,
                   fmt::format("group '{}' is not the same everywhere: here it has the ranks {}; {} lists others or "
                               "another order",
                               group_.name(), fmt::join(group_.ranks(), ","), group_.world().describe_rank(rank))};
  }
  const std::byte* at = message + sizeof(header);
  const auto size = static_cast<size_t>(group_.size());
  for (const int member : peer.members) {
    Call& call = calls_[static_cast<size_t>(member)];
    std::memcpy(&call.record, at, sizeof(CallRecord));
    at += sizeof(CallRecord);
    call.counts = nullptr;
    if (call.record.operation != Operation::kAllToAll) continue;
    auto& counts = counts_[static_cast<size_t>(member)];
    counts.resize(size);
    std::memcpy(counts.data(), at, size * sizeof(int64_t));
    at += size * sizeof(int64_t);
    call.counts = counts.data();
  }
  with_blocks = header.with_blocks != 0;
  header_bytes = header.header_bytes;
  return std::nullopt;
}

std::optional<Failure> NodeExchange::check_records(const Seat& seat) {
  const auto record_of = [&](int member) -> const CallRecord& {
    return group_.seat_of(member) != nullptr ? published(seat, member).record
                                             : calls_[static_cast<size_t>(member)].record;
  };
  for (int member = 1; member < group_.size(); ++member) {
    auto mismatch = group_.compare(record_of(0), 0, record_of(member), member, seat.calls_begun);
    if (mismatch) return mismatch;
  }
  // Lists that all agree on need not travel.
  const Call& own = published(seat, seat.rank);
  if (own.record.operation != Operation::kAllToAll)
    for (Call& call : calls_) call.counts = own.counts;
  return std::nullopt;
}

void NodeExchange::place_blocks(const Peer& peer, const std::byte* data) {
  for (const int member : peer.members) {
    for_each_block(call_of(member), member, local_members_, [&](const Block& block, int destination) {
      const std::byte* at = block.bytes == 0 ? nullptr : data;
      for (size_t local = 0; local < local_members_.size(); ++local)
        if (destination < 0 || local_members_[local] == destination)
          blocks_[index(member, static_cast<int>(local))] = at;
      data += align(block.bytes);
    });
  }
}

void NodeExchange::receive_blocks(Peer& peer, std::byte*& scratch, std::vector<Pending>& receives, const Seat& seat) {
  place_blocks(peer, scratch);
  uint64_t number = 0;
  for (const int member : peer.members) {
    for_each_block(call_of(member), member, local_members_, [&](const Block& block, int) {
      ++number;
      if (block.bytes > 0)
        receives.push_back({group_.world().link()->receive(peer.node, slot(seat.calls_begun, number), scratch,
                                                           static_cast<size_t>(block.bytes)),
                            &peer});
      scratch += align(block.bytes);
    });
  }
}

std::optional<Failure> NodeExchange::wait(Transfer& transfer, const Peer& peer, Seat& seat) {
  awaited_.store(&peer, std::memory_order_relaxed);
  const auto end = transfer.wait(seat.deadline);
  awaited_.store(nullptr, std::memory_order_relaxed);
  if (end == Transfer::End::kDone) return std::nullopt;
  if (end == Transfer::End::kCancelled) return Failure{};
  if (end == Transfer::End::kDeadline) return time_out(peer, seat);
  const int32_t rank = group_.ranks()[static_cast<size_t>(peer.members.front())];
  return Failure{
      FailureKind::kPeerLost, peer.members.size() == 1 ? rank : -1, peer.node,
      group_.describe_wait(seat, group_.describe_members(peer.members), describe(published(seat, seat.rank).record)) +
          ", and lost the connection: " + transfer.why()};
}

std::vector<int> NodeExchange::awaited_members() const {
  const Peer* const peer = awaited_.load(std::memory_order_relaxed);  // peers stay as they were made
  return peer == nullptr ? std::vector<int>() : peer->members;
}

// Asks the other process which of its ranks are late. If it answers it may itself wait, in an earlier call, for a
// process that does not: then that one is to blame.
Failure NodeExchange::time_out(const Peer& peer, const Seat& seat) const {
  std::vector<int> late;
  std::string remark;
  const auto answer = group_.world().ask_late_members(peer.node, group_.slot_prefix(), seat.calls_begun);
  if (!answer)
    remark = fmt::format("; node {} does not answer: its process is stopped or cannot be reached", peer.node);
  if (answer && answer->empty())
    remark = fmt::format("; its ranks have made the call, but node {}'s message is late", peer.node);
  for (const uint32_t member : answer.value_or(std::vector<uint32_t>()))
    if (std::ranges::find(peer.members, static_cast<int>(member)) != peer.members.end())
      late.push_back(static_cast<int>(member));
  if (late.empty()) late = peer.members;
  Failure failure{
      FailureKind::kPeerTimeout, group_.ranks()[static_cast<size_t>(late.front())], peer.node,
      group_.describe_wait(seat, group_.describe_members(late), describe(published(seat, seat.rank).record))};
  if (const std::optional<int> silent = answer ? find_silent_node(peer, seat) : std::nullopt) {
    failure.node = *silent;
    failure.rank = group_.world().nodes()[static_cast<size_t>(*silent)].first_rank;
    remark = fmt::format("; {} does not answer: its process is stopped or cannot be reached",
                         group_.world().describe_rank(failure.rank));
  }
  failure.message += remark;
  return failure;
}

// Other than `peer`.
std::optional<int> NodeExchange::find_silent_node(const Peer& peer, const Seat& seat) const {
  World& world = group_.world();
  for (int node = 0; node < std::ssize(world.nodes()); ++node) {
    if (node == world.this_node() || node == peer.node) continue;
    if (!world.ask_late_members(node, group_.slot_prefix(), seat.calls_begun)) return node;
  }
  return std::nullopt;
}

void NodeExchange::begin(const Seat& seat) {
  begun_ = seat.calls_begun;
  std::lock_guard lock(sends_mutex_);
  for (Peer& peer : peers_) {
    expect(peer, seat.calls_begun);
    expect(peer, seat.calls_begun + 1);
  }
  for (Peer& peer : peers_) send_to(peer, seat);
}

bool NodeExchange::has_begun(const Seat& seat) const {
  return begun_ == seat.calls_begun;
}

void NodeExchange::give_up() {
  std::lock_guard lock(sends_mutex_);
  sends_.clear();
}

std::optional<Failure> NodeExchange::end(Seat& seat) {
  std::vector<std::pair<Peer*, size_t>> inlined;
  std::vector<Peer*> separate;
  for (Peer& peer : peers_) {
    auto& expected = peer.expected[seat.calls_begun & 1];
    if (auto failure = wait(*expected, peer, seat)) return failure;
    expected.reset();
    bool with_blocks = false;
    size_t header_bytes = 0;
    if (auto failure = read_records(peer, seat, with_blocks, header_bytes)) return failure;
    if (with_blocks)
      inlined.emplace_back(&peer, header_bytes);
    else
      separate.push_back(&peer);
  }
  if (auto failure = check_records(seat)) return failure;

  for (auto& [peer, header_bytes] : inlined)
    place_blocks(*peer, peer->incoming[seat.calls_begun & 1].as<std::byte>() + header_bytes);
  int64_t scratch_bytes = 0;
  for (const Peer* peer : separate)
    for (const int member : peer->members)
      for_each_block(call_of(member), member, local_members_,
                     [&](const Block& block, int) { scratch_bytes += align(block.bytes); });
  if (static_cast<size_t>(scratch_bytes) > scratch_.size_bytes()) scratch_ = Buffer(static_cast<size_t>(scratch_bytes));
  auto* scratch = scratch_.as<std::byte>();
  std::vector<Pending> receives;
  for (Peer* peer : separate) receive_blocks(*peer, scratch, receives, seat);
  for (const auto* pending : {&sends_, &receives})
    for (const auto& [transfer, peer] : *pending)
      if (auto failure = wait(*transfer, *peer, seat)) return failure;
  give_up();
  return std::nullopt;
}

}  // namespace plait::comm
