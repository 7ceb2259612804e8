#include "comm/communicator.h"

#include <cstring>

#include <fmt/format.h>

#include "comm/group.h"
#include "comm/sum.h"

namespace plait::comm {
namespace {

const std::byte* bytes(const void* data) {
  return static_cast<const std::byte*>(data);
}

bool can_be_summed(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16;
}

}  // namespace

int Communicator::rank() const {
  return seat_->rank;
}
int Communicator::size() const {
  return group_->size();
}
const std::string& Communicator::group_name() const {
  return group_->name();
}
int Communicator::world_rank(int member) const {
  return group_->ranks()[static_cast<size_t>(member)];
}
std::span<const Traffic> Communicator::traffic() const {
  return seat_->traffic;
}
void Communicator::set_step(std::optional<int64_t> step) {
  seat_->begin_step(step.value_or(kNoStep));
}
void Communicator::set_deadline(std::optional<std::chrono::milliseconds> deadline) {
  group_->set_deadline_ms(deadline ? deadline->count() : -1);
}
void Communicator::cancel(std::string reason) {
  group_->world().cancel(std::move(reason), world_rank(rank()));
}

// Impossible arguments: the peers would wait for a call that never comes.
#define PLAIT_COMM_REQUIRE(condition, ...)                                            \
  do {                                                                                \
    if (!(condition)) return refuse(*group_, *seat_, name, fmt::format(__VA_ARGS__)); \
  } while (false)

namespace {

Error refuse(Group& group, Seat& seat, std::string_view name, const std::string& what) {
  const int32_t rank = group.ranks()[static_cast<size_t>(seat.rank)];
  Error error =
      invalid(fmt::format("{}, '{}' in group '{}': {}", group.world().describe_rank(rank), name, group.name(), what));
  group.world().cancel(error.message, rank);
  return error;
}

bool none_negative(std::span<const int64_t> counts) {
  return std::all_of(counts.begin(), counts.end(), [](int64_t count) { return count >= 0; });
}

}  // namespace

Status Communicator::barrier(std::string_view name) {
  Call call;
  call.record = make_record(Operation::kBarrier, name, DType::kU8, 0, -1, {});
  PLAIT_RETURN_IF_ERROR(group_->publish(*seat_, name, call, 0));
  PLAIT_RETURN_IF_ERROR(group_->meet(*seat_));
  return group_->part(*seat_);
}

Status Communicator::broadcast(std::string_view name, void* data, int64_t count, DType dtype, int root) {
  PLAIT_COMM_REQUIRE(count >= 0, "count is {}", count);
  PLAIT_COMM_REQUIRE(root >= 0 && root < size(), "root {} is not one of {} members", root, size());
  Call call;
  call.record = make_record(Operation::kBroadcast, name, dtype, count, root, {});
  call.in = bytes(data);
  const int64_t total_bytes = count * size_of(dtype);
  const bool small = total_bytes <= kSmallBytes;
  PLAIT_RETURN_IF_ERROR(group_->publish(*seat_, name, call, small ? (rank() == root ? total_bytes : 0) : -1));
  PLAIT_RETURN_IF_ERROR(group_->meet(*seat_));
  if (rank() != root && total_bytes > 0) {
    PLAIT_RETURN_IF_ERROR(group_->begin_reading(*seat_));
    std::memcpy(data, group_->block_data(*seat_, root), static_cast<size_t>(total_bytes));
    group_->end_reading(*seat_);
  }
  return group_->part(*seat_);
}

// This rank's block of every member, added in rank order.
Status Communicator::sum_blocks(std::byte* out, DType dtype) {
  PLAIT_RETURN_IF_ERROR(group_->begin_reading(*seat_));
  auto& sources = seat_->sources;
  sources.clear();
  for (int member = 0; member < size(); ++member) sources.push_back(group_->block_data(*seat_, member));
  const Block block = block_of(group_->call_of(*seat_, rank()), rank(), rank(), size());
  sum_in_rank_order(dtype, sources, out, block.bytes / size_of(dtype));
  group_->end_reading(*seat_);
  return group_->part(*seat_);
}

Status Communicator::all_reduce(std::string_view name, const void* in, void* out, int64_t count, DType dtype) {
  PLAIT_COMM_REQUIRE(count >= 0, "count is {}", count);
  PLAIT_COMM_REQUIRE(can_be_summed(dtype), "{} cannot be summed, only F32 and BF16", plait::name_of(dtype));
  const int64_t total_bytes = count * size_of(dtype);
  auto* result = static_cast<std::byte*>(out);
  if (total_bytes > kSmallBytes && size() > 1) return all_reduce_shares(name, bytes(in), result, count, dtype);
  Call call;
  call.record = make_record(Operation::kAllReduce, name, dtype, count, -1, {});
  call.in = bytes(in);
  // The only member reads its own memory: nothing to copy
  PLAIT_RETURN_IF_ERROR(group_->publish(*seat_, name, call, size() > 1 ? total_bytes : -1));
  PLAIT_RETURN_IF_ERROR(group_->meet(*seat_));
  return sum_blocks(result, dtype);
}

Status Communicator::all_reduce_shares(std::string_view name, const std::byte* in, std::byte* out, int64_t count,
                                       DType dtype) {
  const Share share = share_of(count, rank(), size());
  const int64_t element = size_of(dtype);
  Call call;
  call.record = make_record(Operation::kAllReduce, name, dtype, count, -1, {});
  call.record.stage = Stage::kScatterShares;
  call.in = in;
  PLAIT_RETURN_IF_ERROR(group_->publish(*seat_, name, call, -1));
  PLAIT_RETURN_IF_ERROR(group_->meet(*seat_));
  PLAIT_RETURN_IF_ERROR(sum_blocks(out + share.begin * element, dtype));

  call.record.stage = Stage::kGatherShares;
  call.in = out;
  PLAIT_RETURN_IF_ERROR(group_->publish(*seat_, name, call, -1));
  return gather_blocks(call, out);
}

// Every member's block to its place in `out`, in rank order.
Status Communicator::gather_blocks(const Call& call, std::byte* out) {
  PLAIT_RETURN_IF_ERROR(group_->meet(*seat_));
  PLAIT_RETURN_IF_ERROR(group_->begin_reading(*seat_));
  for (int member = 0; member < size(); ++member) {
    const int64_t block_bytes = block_of(call, member, rank(), size()).bytes;
    const std::byte* data = group_->block_data(*seat_, member);
    if (block_bytes > 0 && data != out) std::memcpy(out, data, static_cast<size_t>(block_bytes));
    out += block_bytes;
  }
  group_->end_reading(*seat_);
  return group_->part(*seat_);
}

Status Communicator::reduce_scatter(std::string_view name, const void* in, void* out, int64_t count, DType dtype) {
  PLAIT_COMM_REQUIRE(count >= 0, "count is {}", count);
  PLAIT_COMM_REQUIRE(can_be_summed(dtype), "{} cannot be summed, only F32 and BF16", plait::name_of(dtype));
  Call call;
  call.record = make_record(Operation::kReduceScatter, name, dtype, count, -1, {});
  call.in = bytes(in);
  const int64_t total_bytes = count * size() * size_of(dtype);
  PLAIT_RETURN_IF_ERROR(group_->publish(*seat_, name, call, total_bytes <= kSmallBytes ? total_bytes : -1));
  PLAIT_RETURN_IF_ERROR(group_->meet(*seat_));
  return sum_blocks(static_cast<std::byte*>(out), dtype);
}

Status Communicator::reduce_scatter(std::string_view name, const void* in, void* out, std::span<const int64_t> counts,
                                    DType dtype) {
  PLAIT_COMM_REQUIRE(static_cast<int>(counts.size()) == size() && none_negative(counts),
                     "{} counts for {} members, none of which may be negative", counts.size(), size());
  PLAIT_COMM_REQUIRE(can_be_summed(dtype), "{} cannot be summed, only F32 and BF16", plait::name_of(dtype));
  Call call;
  call.record = make_record(Operation::kReduceScatter, name, dtype, 0, -1, counts);
  call.in = bytes(in);
  call.counts = counts.data();
  const int64_t total_bytes = call.record.count * size_of(dtype);
  PLAIT_RETURN_IF_ERROR(group_->publish(*seat_, name, call, total_bytes <= kSmallBytes ? total_bytes : -1));
  PLAIT_RETURN_IF_ERROR(group_->meet(*seat_));
  return sum_blocks(static_cast<std::byte*>(out), dtype);
}

Status Communicator::all_gather(std::string_view name, const void* in, void* out, int64_t count, DType dtype) {
  PLAIT_COMM_REQUIRE(count >= 0, "count is {}", count);
  Call call;
  call.record = make_record(Operation::kAllGather, name, dtype, count, -1, {});
  call.in = bytes(in);
  const int64_t own_bytes = count * size_of(dtype);
  PLAIT_RETURN_IF_ERROR(group_->publish(*seat_, name, call, own_bytes <= kSmallBytes ? own_bytes : -1));
  return gather_blocks(call, static_cast<std::byte*>(out));
}

Status Communicator::all_gather(std::string_view name, const void* in, void* out, std::span<const int64_t> counts,
                                DType dtype) {
  PLAIT_COMM_REQUIRE(static_cast<int>(counts.size()) == size() && none_negative(counts),
                     "{} counts for {} members, none of which may be negative", counts.size(), size());
  Call call;
  call.record = make_record(Operation::kAllGather, name, dtype, 0, -1, counts);
  call.in = bytes(in);
  call.counts = counts.data();
  // Whether it is small is agreed by all: the largest block decides, not the own one.
  const bool small = *std::max_element(counts.begin(), counts.end()) * size_of(dtype) <= kSmallBytes;
  const int64_t own_bytes = counts[static_cast<size_t>(rank())] * size_of(dtype);
  PLAIT_RETURN_IF_ERROR(group_->publish(*seat_, name, call, small ? own_bytes : -1));
  return gather_blocks(call, static_cast<std::byte*>(out));
}

Status Communicator::all_to_all(std::string_view name, const void* in, std::span<const int64_t> send_counts, void* out,
                                std::span<const int64_t> receive_counts, DType dtype) {
  PLAIT_COMM_REQUIRE(static_cast<int>(receive_counts.size()) == size() && none_negative(receive_counts),
                     "{} counts to receive for {} members, none of which may be negative", receive_counts.size(),
                     size());
  PLAIT_RETURN_IF_ERROR(all_to_all_start(name, in, send_counts, dtype));
  PLAIT_ASSIGN_OR_RETURN(auto pieces, all_to_all_pieces());
  for (int member = 0; member < size(); ++member) {
    const int64_t sent = pieces[static_cast<size_t>(member)].count;
    const int64_t expected = receive_counts[static_cast<size_t>(member)];
    if (sent == expected) continue;
    World& world = group_->world();
    return group_->fail(
        *seat_, {FailureKind::kMismatch, world_rank(member), world.node_of(world_rank(member)),
                 fmt::format("call {} of group '{}' does not match: in all_to_all '{}' {} sends {} {} to {}, "
                             "which expects {}",
                             seat_->calls_begun, group_name(), name, world.describe_rank(world_rank(member)), sent,
                             plait::name_of(dtype), world.describe_rank(world_rank(rank())), expected)});
  }
  auto* to = static_cast<std::byte*>(out);
  for (const Piece& piece : pieces) {
    const int64_t piece_bytes = piece.count * size_of(dtype);
    if (piece_bytes > 0) std::memcpy(to, piece.data, static_cast<size_t>(piece_bytes));
    to += piece_bytes;
  }
  return all_to_all_finish();
}

Status Communicator::all_to_all_start(std::string_view name, const void* in, std::span<const int64_t> send_counts,
                                      DType dtype) {
  PLAIT_COMM_REQUIRE(static_cast<int>(send_counts.size()) == size() && none_negative(send_counts),
                     "{} counts to send for {} members, none of which may be negative", send_counts.size(), size());
  Call call;
  call.record = make_record(Operation::kAllToAll, name, dtype, 0, -1, send_counts);
  call.in = bytes(in);
  call.counts = send_counts.data();
  PLAIT_RETURN_IF_ERROR(group_->publish(*seat_, name, call, -1));
  seat_->in_all_to_all = true;
  seat_->call.computing = true;
  seat_->show();
  return group_->send_early(*seat_);
}

Result<std::span<const Communicator::Piece>> Communicator::all_to_all_pieces() {
  group_->restart_clock(*seat_);
  auto met = group_->meet(*seat_);
  if (met.has_error()) return std::move(met).error();
  const int64_t element = size_of(group_->call_of(*seat_, rank()).record.dtype);
  seat_->pieces.resize(static_cast<size_t>(size()));
  PLAIT_RETURN_IF_ERROR(group_->begin_reading(*seat_));
  for (int member = 0; member < size(); ++member) {
    const Block block = block_of(group_->call_of(*seat_, member), member, rank(), size());
    seat_->pieces[static_cast<size_t>(member)] = {group_->block_data(*seat_, member), block.bytes / element};
  }
  return std::span<const Piece>(seat_->pieces);
}

void Communicator::all_to_all_abandon(std::string reason) {
  cancel(std::move(reason));
  seat_->in_all_to_all = false;
  group_->leave(*seat_);
}

Status Communicator::all_to_all_finish() {
  seat_->in_all_to_all = false;
  group_->end_reading(*seat_);
  return group_->part(*seat_);
}

Status Communicator::send(std::string_view name, const void* data, int64_t count, DType dtype, int to) {
  PLAIT_COMM_REQUIRE(count >= 0, "count is {}", count);
  PLAIT_COMM_REQUIRE(to >= 0 && to < size() && to != rank(), "cannot send to member {} of {}", to, size());
  return group_->send(*seat_, make_record(Operation::kSend, name, dtype, count, -1, {}), data, to);
}

Status Communicator::receive(std::string_view name, void* data, int64_t count, DType dtype, int from) {
  PLAIT_COMM_REQUIRE(count >= 0, "count is {}", count);
  PLAIT_COMM_REQUIRE(from >= 0 && from < size() && from != rank(), "cannot receive from member {} of {}", from, size());
  PLAIT_RETURN_IF_ERROR(group_->receive(*seat_, make_record(Operation::kSend, name, dtype, count, -1, {}), data, from));
  Traffic& received = seat_->traffic_of(Operation::kSend, name);
  ++received.calls;
  received.bytes += static_cast<uint64_t>(count * size_of(dtype));
  return {};
}

}  // namespace plait::comm
