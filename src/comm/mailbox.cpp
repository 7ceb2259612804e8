#include "comm/mailbox.h"

#include <array>
#include <cstring>
#include <deque>

#include <fmt/format.h>

#include "comm/group.h"
#include "comm/process_link.h"

namespace plait::comm {
namespace {

constexpr uint32_t kOnTheirWay = 8;         // messages of one pair
constexpr int64_t kInlineBytes = 32 << 10;  // behind the record
constexpr auto kFlushLimit = std::chrono::seconds(5);

uint64_t slot(uint32_t prefix, uint32_t number, int from, int to, bool data) {
  return uint64_t{prefix} << 40 | uint64_t{number & 0xfffff} << 20 | uint64_t{1} << 19 | uint64_t{data} << 18 |
         static_cast<uint64_t>(from) << 9 | static_cast<uint64_t>(to);
}

}  // namespace

struct Mailboxes::Box {
  struct Message {
    CallRecord record;
    std::vector<std::byte> data;
  };
  std::array<Message, kOnTheirWay> ring;
  uint32_t sent_count = 0;   // the sender's
  uint32_t taken_count = 0;  // the receiver's
  Signal sent;
  Signal taken;
};

struct Mailboxes::Outbox {
  struct Message {
    std::vector<std::byte> bytes;  // record, then data
    std::unique_ptr<Transfer> first;
    std::unique_ptr<Transfer> rest;  // of long ones
  };
  std::deque<Message> on_their_way;
  uint32_t sent_count = 0;
};

Mailboxes::Mailboxes(Group& group) : group_(group), local_members_(group.seats().size()) {
  for (size_t i = 0; i < local_members_ * local_members_; ++i) boxes_.push_back(std::make_unique<Box>());
  for (size_t i = 0; i < local_members_ * static_cast<size_t>(group.size()); ++i)
    outboxes_.push_back(std::make_unique<Outbox>());
  received_.resize(outboxes_.size());
}

Mailboxes::~Mailboxes() {
  // What was sent is delivered, unless the world has ended.
  const auto deadline = Clock::now() + kFlushLimit;
  for (auto& outbox : outboxes_)
    for (auto& message : outbox->on_their_way) {
      if (message.first->wait(deadline) != Transfer::End::kDone) return;
      if (message.rest && message.rest->wait(deadline) != Transfer::End::kDone) return;
    }
}

Mailboxes::Box& Mailboxes::box(int from_local, int to_local) {
  return *boxes_[static_cast<size_t>(from_local) * local_members_ + static_cast<size_t>(to_local)];
}

void Mailboxes::cancel() {
  for (auto& box : boxes_) {
    box->sent.cancel();
    box->taken.cancel();
  }
}

Status Mailboxes::send(Seat& seat, const CallRecord& record, const void* data, int to) {
  group_.begin_message(seat, record, to, /*receiving=*/false);
  if (group_.world().cancellation().cancelled()) return group_.cancelled(seat);
  const auto* bytes = static_cast<const std::byte*>(data);
  return group_.seat_of(to) != nullptr ? send_local(seat, record, bytes, to) : send_remote(seat, record, bytes, to);
}

Status Mailboxes::receive(Seat& seat, const CallRecord& record, void* data, int from) {
  group_.begin_message(seat, record, from, /*receiving=*/true);
  if (group_.world().cancellation().cancelled()) return group_.cancelled(seat);
  auto* bytes = static_cast<std::byte*>(data);
  return group_.seat_of(from) != nullptr ? receive_local(seat, record, bytes, from)
                                         : receive_remote(seat, record, bytes, from);
}

Status Mailboxes::send_local(Seat& seat, const CallRecord& record, const std::byte* data, int to) {
  Box& box = this->box(seat.local, group_.seat_of(to)->local);
  switch (box.taken.wait(box.sent_count - (kOnTheirWay - 1), seat.deadline, seat.patience)) {
    case WaitEnd::kReached:
      break;
    case WaitEnd::kCancelled:
      return group_.cancelled(seat);
    case WaitEnd::kDeadline:
      return group_.timed_out(seat, std::array{to}, describe(record));
  }
  Box::Message& message = box.ring[box.sent_count % kOnTheirWay];
  message.record = record;
  message.data.assign(data, data + record.count * size_of(record.dtype));
  ++box.sent_count;
  box.sent.advance();
  return {};
}

Status Mailboxes::receive_local(Seat& seat, const CallRecord& record, std::byte* data, int from) {
  Box& box = this->box(group_.seat_of(from)->local, seat.local);
  switch (box.sent.wait(box.taken_count + 1, seat.deadline, seat.patience)) {
    case WaitEnd::kReached:
      break;
    case WaitEnd::kCancelled:
      return group_.cancelled(seat);
    case WaitEnd::kDeadline:
      return group_.timed_out(seat, std::array{from}, "receiving " + describe(record));
  }
  const Box::Message& message = box.ring[box.taken_count % kOnTheirWay];
  if (auto mismatch = group_.compare(record, seat.rank, message.record, from, box.taken_count + 1))
    return group_.fail(seat, std::move(*mismatch));
  if (!message.data.empty()) std::memcpy(data, message.data.data(), message.data.size());
  ++box.taken_count;
  box.taken.advance();
  return {};
}

namespace {

Error end_of(Group& group, Seat& seat, Transfer& transfer, Transfer::End end, int peer, const std::string& what) {
  if (end == Transfer::End::kCancelled) return group.cancelled(seat);
  if (end == Transfer::End::kDeadline) return group.timed_out(seat, std::array{peer}, what);
  const int32_t rank = group.ranks()[static_cast<size_t>(peer)];
  return group.fail(seat, {FailureKind::kPeerLost, rank, group.world().node_of(rank),
                           group.describe_wait(seat, group.world().describe_rank(rank), what) +
                               ", and lost the connection: " + transfer.why()});
}

}  // namespace

Status Mailboxes::send_remote(Seat& seat, const CallRecord& record, const std::byte* data, int to) {
  Outbox& outbox =
      *outboxes_[static_cast<size_t>(seat.local) * static_cast<size_t>(group_.size()) + static_cast<size_t>(to)];
  while (outbox.on_their_way.size() >= kOnTheirWay) {
    auto& oldest = outbox.on_their_way.front();
    for (Transfer* transfer : {oldest.first.get(), oldest.rest.get()}) {
      if (transfer == nullptr) continue;
      const auto end = transfer->wait(seat.deadline);
      if (end != Transfer::End::kDone) return end_of(group_, seat, *transfer, end, to, describe(record));
    }
    outbox.on_their_way.pop_front();
  }
  const auto data_bytes = static_cast<size_t>(record.count * size_of(record.dtype));
  auto& message = outbox.on_their_way.emplace_back();
  message.bytes.resize(sizeof(record) + data_bytes);
  std::memcpy(message.bytes.data(), &record, sizeof(record));
  if (data_bytes > 0) std::memcpy(message.bytes.data() + sizeof(record), data, data_bytes);
  const int32_t rank = group_.ranks()[static_cast<size_t>(to)];
  const int node = group_.world().node_of(rank);
  ProcessLink& link = *group_.world().link();
  const uint32_t number = ++outbox.sent_count;
  const bool together = data_bytes <= static_cast<size_t>(kInlineBytes);
  message.first = link.send(node, slot(group_.slot_prefix(), number, seat.rank, to, false), message.bytes.data(),
                            together ? message.bytes.size() : sizeof(record));
  if (!together)
    message.rest = link.send(node, slot(group_.slot_prefix(), number, seat.rank, to, true),
                             message.bytes.data() + sizeof(record), data_bytes);
  return {};
}

Status Mailboxes::receive_remote(Seat& seat, const CallRecord& record, std::byte* data, int from) {
  const uint32_t number =
      ++received_[static_cast<size_t>(seat.local) * static_cast<size_t>(group_.size()) + static_cast<size_t>(from)];
  const int node = group_.world().node_of(group_.ranks()[static_cast<size_t>(from)]);
  ProcessLink& link = *group_.world().link();
  std::vector<std::byte> first(sizeof(record) + static_cast<size_t>(kInlineBytes));
  auto transfer =
      link.receive(node, slot(group_.slot_prefix(), number, from, seat.rank, false), first.data(), first.size());
  auto end = transfer->wait(seat.deadline);
  if (end != Transfer::End::kDone) return end_of(group_, seat, *transfer, end, from, "receiving " + describe(record));
  CallRecord theirs;
  std::memcpy(&theirs, first.data(), sizeof(theirs));
  if (auto mismatch = group_.compare(record, seat.rank, theirs, from, number))
    return group_.fail(seat, std::move(*mismatch));
  const auto data_bytes = static_cast<size_t>(record.count * size_of(record.dtype));
  if (data_bytes <= static_cast<size_t>(kInlineBytes)) {
    if (data_bytes > 0) std::memcpy(data, first.data() + sizeof(record), data_bytes);
    return {};
  }
  transfer = link.receive(node, slot(group_.slot_prefix(), number, from, seat.rank, true), data, data_bytes);
  end = transfer->wait(seat.deadline);
  if (end != Transfer::End::kDone) return end_of(group_, seat, *transfer, end, from, "receiving " + describe(record));
  return {};
}

}  // namespace plait::comm
