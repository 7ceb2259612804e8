// One group of ranks as one of them sees it: the collectives, with the same contract on every transport.
//
// A Communicator belongs to one rank's thread. Every member makes the same calls in the same order, each under a name
// ("layer 3 attention out"); empty members take part. Ranks below are positions in the group; counts are elements.
//
// Sums are taken in float32 in rank order (rank 0 + rank 1 + ...) and rounded once: every rank gets the same bits, on
// any transport, however the ranks are spread. F32 and BF16 can be summed; anything can be moved.
//
// Errors end the world, not only the call: kDeadline (a peer did not come; the message names waiter, peer, operation,
// call number, step, time), kInternal (ranks made different calls; says who called what), kUnavailable (a peer's
// process is gone) on the rank that noticed, kCancelled with that cause on all others and for every later call, in
// every group. kInvalid (impossible arguments, noticed before anything moves) also cancels the peers.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"
#include "tensor/dtype.h"

namespace plait::comm {

class Group;
struct Seat;

// What a member has received from the others under one name, whatever it sums or copies of it.
struct Traffic {
  const char* operation = "";  // "all_reduce"
  std::string name;
  uint64_t calls = 0;
  uint64_t bytes = 0;
};

class Communicator {
 public:
  Communicator(std::shared_ptr<Group> group, Seat* seat) : group_(std::move(group)), seat_(seat) {}

  int rank() const;  // position in the group
  int size() const;  // members
  const std::string& group_name() const;
  int world_rank(int member) const;  // the world's number of a member
  // Of this member's calls so far, in the order of their first ones.
  std::span<const Traffic> traffic() const;

  // For messages: the step that this rank is in, which the next calls belong to; none: it has nothing to do.
  void set_step(std::optional<int64_t> step);
  // Of all members' waits in this group in this process, instead of the world's; zero: for ever; none: the world's.
  void set_deadline(std::optional<std::chrono::milliseconds> deadline);
  // Ends every wait of the world.
  void cancel(std::string reason);

  Status barrier(std::string_view name);
  // data [count]: from member `root` to all.
  Status broadcast(std::string_view name, void* data, int64_t count, DType dtype, int root);
  // out [count] = sum of all members' in [count]; out may be in.
  Status all_reduce(std::string_view name, const void* in, void* out, int64_t count, DType dtype);
  // out [count] = block `rank()` of the sum of all in [size * count]; out may be that block of in, and nothing else of
  // it.
  Status reduce_scatter(std::string_view name, const void* in, void* out, int64_t count, DType dtype);
  // The same with a block of counts[r] for member r; all members give the same list.
  Status reduce_scatter(std::string_view name, const void* in, void* out, std::span<const int64_t> counts, DType dtype);
  // out [size * count] = all members' in [count], in rank order; in may be the own block of out, and nothing else of
  // it.
  Status all_gather(std::string_view name, const void* in, void* out, int64_t count, DType dtype);
  // The same with counts[r] from member r; all members give the same list.
  Status all_gather(std::string_view name, const void* in, void* out, std::span<const int64_t> counts, DType dtype);
  // in: send_counts[r] for each member r; out: receive_counts[r] from each, both in rank order and apart. A sender and
  // a receiver that disagree are a mismatch.
  Status all_to_all(std::string_view name, const void* in, std::span<const int64_t> send_counts, void* out,
                    std::span<const int64_t> receive_counts, DType dtype);

  // The same in three calls, for receivers that learn their counts from the senders and read in place. Between start
  // and pieces the rank may compute. `in` and `send_counts` must not change before finish returns. The pieces live
  // until finish, which follows them soon: while a rank holds pieces, no other one can leave a call that was cancelled.
  struct Piece {
    const std::byte* data = nullptr;
    int64_t count = 0;
  };
  Status all_to_all_start(std::string_view name, const void* in, std::span<const int64_t> send_counts, DType dtype);
  Result<std::span<const Piece>> all_to_all_pieces();  // [size]: what each member sent here
  Status all_to_all_finish();
  void all_to_all_abandon(std::string reason);  // instead of finish: cancels; nobody reads `in` afterwards

  // Between two members, in order. send copies and returns unless eight messages to this member are on their way.
  // dtype, count and name of both sides agree.
  Status send(std::string_view name, const void* data, int64_t count, DType dtype, int to);
  Status receive(std::string_view name, void* data, int64_t count, DType dtype, int from);

 private:
  Status all_reduce_shares(std::string_view name, const std::byte* in, std::byte* out, int64_t count, DType dtype);
  Status sum_blocks(std::byte* out, DType dtype);
  Status gather_blocks(const struct Call& call, std::byte* out);

  std::shared_ptr<Group> group_;
  Seat* seat_;
};

}  // namespace plait::comm
