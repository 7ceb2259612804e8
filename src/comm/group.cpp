#include "comm/group.h"

#include <cstring>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/assert.h"
#include "base/launch_region.h"
#include "base/units.h"

namespace plait::comm {

Group::Group(World& world, std::string name, std::vector<int> ranks)
    : world_(world),
      name_(std::move(name)),
      ranks_(std::move(ranks)),
      slot_prefix_(static_cast<uint32_t>(digest_of(std::as_bytes(std::span(name_)))) & 0xffffff),
      seat_of_(ranks_.size(), nullptr) {
  for (int member = 0; member < size(); ++member) {
    claimed_.push_back(std::make_unique<std::atomic<bool>>(false));
    if (!world_.is_local(ranks_[static_cast<size_t>(member)])) continue;
    seats_.push_back(std::make_unique<Seat>(member, static_cast<int>(seats_.size()), world_.cores_to_spare()));
    seat_of_[static_cast<size_t>(member)] = seats_.back().get();
  }
  if (seats_.size() != ranks_.size()) exchange_ = std::make_unique<NodeExchange>(*this);
  mailboxes_ = std::make_unique<Mailboxes>(*this);
  watcher_ = world_.cancellation().watch([this] {
    exchanged_.cancel();
    mailboxes_->cancel();
    for (auto& seat : seats_) {
      seat->arrived.cancel();
      seat->finished.cancel();
    }
  });
}

Group::~Group() {
  world_.cancellation().unwatch(watcher_);
}

std::vector<uint32_t> Group::late_members(uint32_t call) const {
  std::vector<uint32_t> late;
  for (const auto& seat : seats_)
    if (!seat->arrived.reached(call)) late.push_back(static_cast<uint32_t>(seat->rank));
  return late;
}

bool Group::claim(int member) {
  return !claimed_[static_cast<size_t>(member)]->exchange(true);
}

void Seat::begin_step(int64_t step) {
  call.step = step;
  show();
}

void Group::begin_call(Seat& seat, const OpenCall& call) {
  const int64_t step = seat.call.step;
  seat.call = call;
  seat.call.step = step;
  seat.call.ever = true;
  restart_clock(seat);
  seat.in_call.store(true, std::memory_order_release);
}

void Group::begin_message(Seat& seat, const CallRecord& record, int peer, bool receiving) {
  begin_call(seat, {.record = record, .peer = peer, .receiving = receiving});
}

void Group::restart_clock(Seat& seat) {
  const auto now = Clock::now();
  seat.call.began = now;
  seat.call.computing = false;
  seat.show();
  int64_t limit_ms = deadline_ms_.load(std::memory_order_relaxed);
  if (limit_ms < 0) limit_ms = world_.deadline().value_or(std::chrono::milliseconds(0)).count();
  seat.deadline = limit_ms == 0 ? kNoDeadline : now + std::chrono::milliseconds(limit_ms);
}

Status Group::publish(Seat& seat, std::string_view name, const Call& call, int64_t staged_bytes) {
  if (world_.cancellation().cancelled()) return cancelled(seat);
  if (seat.in_all_to_all) {
    const int32_t rank = ranks_[static_cast<size_t>(seat.rank)];
    Error error = invalid(fmt::format("{}, '{}' in group '{}': the all_to_all '{}' has been started and not finished",
                                      world_.describe_rank(rank), name, name_, seat.name));
    world_.cancel(error.message, rank);
    return error;
  }
  const uint32_t number = ++seat.calls_begun;
  Call& open = seat.calls[number & 1];
  open = call;
  seat.staged = staged_bytes >= 0;
  seat.name = name;
  begin_call(seat, {.record = call.record, .number = number, .ends_at = seat.staged ? 0 : seat.calls_parted + 1});
  if (staged_bytes > 0) {
    auto& staging = seat.staging[number & 1];
    if (!staging) staging = std::make_unique_for_overwrite<std::byte[]>(kSmallBytes);
    std::memcpy(staging.get(), call.in, static_cast<size_t>(staged_bytes));
    open.in = staging.get();
  }
  seat.arrived.advance();
  return {};
}

Status Group::wait_for_local(Seat& seat) {
  for (const auto& other : seats_) {
    if (other.get() == &seat) continue;
    switch (other->arrived.wait(seat.calls_begun, seat.deadline, seat.patience)) {
      case WaitEnd::kReached:
        break;
      case WaitEnd::kCancelled:
        return cancelled(seat);
      case WaitEnd::kDeadline: {
        std::vector<int> late;
        for (const auto& candidate : seats_)
          if (!candidate->arrived.reached(seat.calls_begun)) late.push_back(candidate->rank);
        if (late.empty()) late.push_back(other->rank);
        return timed_out(seat, late, describe(seat.calls[seat.calls_begun & 1].record));
      }
    }
  }
  return {};
}

Status Group::meet(Seat& seat) {
  PLAIT_RETURN_IF_ERROR(meet_others(seat));
  count_traffic(seat);
  return {};
}

// A few names at most: every layer's calls have the same.
Traffic& Seat::traffic_of(Operation operation, std::string_view call_name) {
  const char* const operation_name = name_of(operation);
  const auto found = std::find_if(traffic.begin(), traffic.end(), [&](const Traffic& entry) {
    return entry.operation == operation_name && entry.name == call_name;
  });
  if (found != traffic.end()) return *found;
  return traffic.emplace_back(operation_name, std::string(call_name));
}

void Group::count_traffic(Seat& seat) {
  const Call& own = seat.calls[seat.calls_begun & 1];
  const CallRecord& record = own.record;
  Traffic& entry = seat.traffic_of(record.operation, seat.name);
  if (record.stage != Stage::kGatherShares) ++entry.calls;
  for (int source = 0; source < size(); ++source) {
    if (source == seat.rank || (record.root >= 0 && source != record.root)) continue;
    // All give the same counts, but for an all-to-all; those of a member that has left a small call are gone.
    const Call& call = record.operation == Operation::kAllToAll ? call_of(seat, source) : own;
    entry.bytes += static_cast<uint64_t>(block_of(call, source, seat.rank, size()).bytes);
  }
}

Status Group::meet_others(Seat& seat) {
  const CollectiveWait collective;
  PLAIT_RETURN_IF_ERROR(wait_for_local(seat));
  const size_t parity = seat.calls_begun & 1;
  const Seat& first = *seats_.front();
  for (const auto& other : seats_) {
    auto mismatch =
        compare(first.calls[parity].record, first.rank, other->calls[parity].record, other->rank, seat.calls_begun);
    if (mismatch) return fail(seat, std::move(*mismatch));
  }
  if (!exchange_) return {};
  if (&seat != &first) {
    if (exchanged_.wait(seat.calls_begun, kNoDeadline, seat.patience) != WaitEnd::kReached) return cancelled(seat);
    return {};
  }
  // The exchange sends from all local members' memory: none of them may leave meanwhile.
  PLAIT_RETURN_IF_ERROR(begin_reading(seat));
  if (!exchange_->has_begun(seat)) exchange_->begin(seat);
  auto failure = exchange_->end(seat);
  end_reading(seat);
  if (failure) return failure->message.empty() ? cancelled(seat) : fail(seat, std::move(*failure));
  exchanged_.advance();
  return {};
}

Status Group::send_early(Seat& seat) {
  if (!exchange_ || &seat != seats_.front().get()) return {};
  for (const auto& other : seats_)
    if (!other->arrived.reached(seat.calls_begun)) return {};
  PLAIT_RETURN_IF_ERROR(begin_reading(seat));
  exchange_->begin(seat);
  end_reading(seat);
  return {};
}

const Call& Group::call_of(const Seat& seat, int source) const {
  if (const Seat* local = seat_of(source)) return local->calls[seat.calls_begun & 1];
  return exchange_->call_of(source);
}

const std::byte* Group::block_data(const Seat& seat, int source) const {
  if (const Seat* local = seat_of(source)) {
    Call call = local->calls[seat.calls_begun & 1];
    // A list that all agree on is read from the own caller: another's may be gone after a staged call.
    if (call.record.operation != Operation::kAllToAll) call.counts = seat.calls[seat.calls_begun & 1].counts;
    const Block block = block_of(call, source, seat.rank, size());
    return block.bytes == 0 ? nullptr : call.in + block.offset_bytes;
  }
  return exchange_->block_data(source, seat.local);
}

Status Group::begin_reading(Seat& seat) {
  // Either we see the cancellation, or a rank that leaves because of it sees us reading.
  seat.reading.store(true, std::memory_order_seq_cst);
  if (!world_.cancellation().cancelled()) return {};
  seat.reading.store(false, std::memory_order_seq_cst);
  return cancelled(seat);
}

Status Group::part(Seat& seat) {
  if (seat.staged) {
    seat.end_call();
    return {};
  }
  const CollectiveWait collective;
  ++seat.calls_parted;
  seat.finished.advance();
  for (const auto& other : seats_) {
    if (other.get() == &seat) continue;
    switch (other->finished.wait(seat.calls_parted, seat.deadline, seat.patience)) {
      case WaitEnd::kReached:
        break;
      case WaitEnd::kCancelled:
        return cancelled(seat);
      case WaitEnd::kDeadline:
        return timed_out(seat, std::array{other->rank},
                         describe(seat.calls[seat.calls_begun & 1].record) + " (its end)");
    }
  }
  seat.end_call();
  return {};
}

void Group::leave(Seat& seat) {
  seat.reading.store(false, std::memory_order_seq_cst);
  for (const auto& other : seats_)
    while (other.get() != &seat && other->reading.load(std::memory_order_seq_cst)) std::this_thread::yield();
  // Nor may what was sent early be read any more.
  if (exchange_) exchange_->give_up();
  seat.end_call();
}

Error Group::fail(Seat& seat, Failure failure) {
  Error error = to_error(failure);
  if (!world_.cancellation().cancel(std::move(failure))) error = world_.cancellation().error();
  leave(seat);
  return error;
}

Error Group::cancelled(Seat& seat) {
  leave(seat);
  return world_.cancellation().error();
}

std::string Group::describe_wait(const Seat& seat, const std::string& whom, const std::string& what) const {
  const double seconds = std::chrono::duration<double>(Clock::now() - seat.call.began).count();
  return fmt::format("{} waited {} for {} in {}", world_.describe_rank(ranks_[static_cast<size_t>(seat.rank)]),
                     format_seconds(seconds), whom, describe_place(seat.call, what));
}

std::string Group::describe_place(const OpenCall& call, const std::string& what) const {
  return fmt::format("{} ({}group '{}'{})", what, call.number > 0 ? fmt::format("call {} of ", call.number) : "", name_,
                     call.step != kNoStep ? fmt::format(", step {}", call.step) : "");
}

std::string Group::describe_place(const OpenCall& call) const {
  return describe_place(call, (call.receiving ? "receiving " : "") + describe(call.record));
}

std::vector<int> Group::awaited_members(const Seat& seat, const OpenCall& call) const {
  if (call.computing) return {};
  if (call.peer >= 0) return {call.peer};
  std::vector<int> awaited;
  for (const uint32_t member : late_members(call.number))
    if (static_cast<int>(member) != seat.rank) awaited.push_back(static_cast<int>(member));
  if (awaited.empty() && exchange_) awaited = exchange_->awaited_members();
  if (!awaited.empty() || call.ends_at == 0 || !seat.finished.reached(call.ends_at)) return awaited;
  for (const auto& other : seats_)
    if (!other->finished.reached(call.ends_at)) awaited.push_back(other->rank);
  return awaited;
}

std::string Group::describe_members(std::span<const int> members) const {
  std::vector<std::string> texts;
  for (const int member : members) texts.push_back(world_.describe_rank(ranks_[static_cast<size_t>(member)]));
  return fmt::format("{}", fmt::join(texts, ", "));
}

Error Group::timed_out(Seat& seat, std::span<const int> late_members, const std::string& what) {
  const int32_t rank = ranks_[static_cast<size_t>(late_members.front())];
  return fail(seat, {FailureKind::kPeerTimeout, rank, world_.node_of(rank),
                     describe_wait(seat, describe_members(late_members), what)});
}

std::optional<Failure> Group::compare(const CallRecord& first, int first_member, const CallRecord& other,
                                      int other_member, uint32_t call) const {
  if (first == other) return std::nullopt;
  const int32_t first_rank = ranks_[static_cast<size_t>(first_member)];
  const int32_t other_rank = ranks_[static_cast<size_t>(other_member)];
  return Failure{FailureKind::kMismatch, other_rank, world_.node_of(other_rank),
                 fmt::format("call {} of group '{}' does not match: {} called {}, {} called {}", call, name_,
                             world_.describe_rank(first_rank), describe(first), world_.describe_rank(other_rank),
                             describe(other))};
}

Status Group::send(Seat& seat, const CallRecord& record, const void* data, int to) {
  const CollectiveWait collective;
  PLAIT_RETURN_IF_ERROR(mailboxes_->send(seat, record, data, to));
  seat.end_call();
  return {};
}

Status Group::receive(Seat& seat, const CallRecord& record, void* data, int from) {
  const CollectiveWait collective;
  PLAIT_RETURN_IF_ERROR(mailboxes_->receive(seat, record, data, from));
  seat.end_call();
  return {};
}

}  // namespace plait::comm
