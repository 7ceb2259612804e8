// What the members of one group in this process share: a seat for each, and the exchange with members elsewhere.
//
// A call runs in four steps, on every rank: publish (lay the call open at the own seat), meet (wait until all have
// published, check that the calls agree, and, if members live elsewhere, let the first local member exchange with their
// processes), then read the others' blocks, and part (wait until nobody reads the own memory any more; not needed when
// the call was small enough to be copied to the seat). Seats belong to their rank's thread except for what says so.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/seqlock.h"
#include "comm/call.h"
#include "comm/communicator.h"
#include "comm/mailbox.h"
#include "comm/node_exchange.h"
#include "comm/open_call.h"
#include "comm/signal.h"
#include "comm/world.h"

namespace plait::comm {

// Inputs up to this size are copied to the seat; an all-reduce up to this size is summed by every rank.
inline constexpr int64_t kSmallBytes = 16 << 10;

struct Seat {
  Seat(int rank_, int local_, bool cores_to_spare) : rank(rank_), local(local_), patience(cores_to_spare) {}

  const int rank;   // position in the group
  const int local;  // position among the members of this process
  uint32_t calls_begun = 0;
  uint32_t calls_parted = 0;  // of them, those that end with part()
  bool staged = false;        // the call in hand was copied
  bool in_all_to_all = false;
  Clock::time_point deadline;
  std::string name;                  // of the call in hand
  OpenCall call;                     // which that is, and the step
  Seqlock<OpenCall> shown;           // the same for any thread; see show()
  std::atomic<bool> in_call{false};  // it has not ended; read before `shown`
  void show() { shown.store(call); }
  void begin_step(int64_t step);  // kNoStep: the rank has none to do
  void end_call() { in_call.store(false, std::memory_order_release); }
  Patience patience;
  std::vector<Communicator::Piece> pieces;
  std::vector<const std::byte*> sources;
  std::vector<Traffic> traffic;
  Traffic& traffic_of(Operation operation, std::string_view call_name);

  // Read by other members between `arrived` of this call and of the next but one.
  std::array<Call, 2> calls;
  std::array<std::unique_ptr<std::byte[]>, 2> staging;
  Signal arrived;                    // advanced once a call
  Signal finished;                   // advanced once a call that parts
  std::atomic<bool> reading{false};  // this rank reads the memory of others
};

class Group {
 public:
  // Every rank of the list belongs to the world once; at least one is local.
  Group(World& world, std::string name, std::vector<int> ranks);
  ~Group();

  World& world() { return world_; }
  const std::string& name() const { return name_; }
  uint32_t slot_prefix() const { return slot_prefix_; }
  std::span<const int> ranks() const { return ranks_; }
  int size() const { return static_cast<int>(ranks_.size()); }
  std::span<const std::unique_ptr<Seat>> seats() const { return seats_; }
  Seat* seat_of(int member) const { return seat_of_[static_cast<size_t>(member)]; }  // nullptr: elsewhere
  // Local members that have not begun call `call`; from any thread.
  std::vector<uint32_t> late_members(uint32_t call) const;
  bool claim(int member);  // false: somebody has this member's Communicator already
  void set_deadline_ms(int64_t milliseconds) { deadline_ms_.store(milliseconds, std::memory_order_relaxed); }

  // The four steps. `call.counts` and `call.in` stay valid until part(); an input of `staged_bytes` >= 0 is copied.
  Status publish(Seat& seat, std::string_view name, const Call& call, int64_t staged_bytes);
  Status meet(Seat& seat);
  // Between publish and meet: sends to other processes now if all local members are here, so that it travels while this
  // rank computes; otherwise meet does.
  Status send_early(Seat& seat);
  // Between meet and part: where the block of member `source` for this seat lies. Reads stand between begin_reading
  // and end_reading; begin_reading fails when the world was cancelled.
  const Call& call_of(const Seat& seat, int source) const;
  const std::byte* block_data(const Seat& seat, int source) const;
  Status begin_reading(Seat& seat);
  void end_reading(Seat& seat) { seat.reading.store(false, std::memory_order_seq_cst); }
  Status part(Seat& seat);
  // Instead of part, when the world was cancelled: returns when no other rank reads this one's memory.
  void leave(Seat& seat);

  Status send(Seat& seat, const CallRecord& record, const void* data, int to);
  Status receive(Seat& seat, const CallRecord& record, void* data, int from);

  // Between the parts of a call, when it computed there: its wait begins now.
  void restart_clock(Seat& seat);
  // A message to or from `peer`: begins before it, and ends after.
  void begin_message(Seat& seat, const CallRecord& record, int peer, bool receiving);
  // Ends the world and says so to this rank; returns when no other rank reads this one's memory.
  Error fail(Seat& seat, Failure failure);
  Error cancelled(Seat& seat);
  // "rank 3 (node 0, a) waited 2.00 s for <whom> in <what> (call 17 of group 'tp', step 4)"
  std::string describe_wait(const Seat& seat, const std::string& whom, const std::string& what) const;
  // "all_to_all 'experts' of U8 (call 17 of group 'ep', step 4)"
  std::string describe_place(const OpenCall& call) const;
  std::string describe_place(const OpenCall& call, const std::string& what) const;
  // What that open call of a member here waits for: members, by position in the group; from any thread, so that it may
  // have ended meanwhile.
  std::vector<int> awaited_members(const Seat& seat, const OpenCall& call) const;
  std::string describe_members(std::span<const int> members) const;  // "rank 1 (node 1, b), rank 2 (node 1, b)"
  Error timed_out(Seat& seat, std::span<const int> late_members, const std::string& what);
  std::optional<Failure> compare(const CallRecord& first, int first_member, const CallRecord& other, int other_member,
                                 uint32_t call) const;

 private:
  void begin_call(Seat& seat, const OpenCall& call);
  Status meet_others(Seat& seat);
  void count_traffic(Seat& seat);
  Status wait_for_local(Seat& seat);

  World& world_;
  const std::string name_;
  const std::vector<int> ranks_;  // the world's number of each member
  const uint32_t slot_prefix_;
  std::atomic<int64_t> deadline_ms_{-1};  // -1: the world's; 0: none
  std::vector<std::unique_ptr<Seat>> seats_;
  std::vector<Seat*> seat_of_;
  std::vector<std::unique_ptr<std::atomic<bool>>> claimed_;
  std::unique_ptr<NodeExchange> exchange_;
  std::unique_ptr<Mailboxes> mailboxes_;
  Signal exchanged_;  // advanced by the first local member when other nodes' blocks are here
  uint64_t watcher_ = 0;
};

}  // namespace plait::comm
