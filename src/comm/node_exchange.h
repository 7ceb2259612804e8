// How the members of a group in this process exchange with those in others: one message to and from each other
// process per call, made and read by the first local member for all.
//
// The message carries the local members' call records, and their blocks behind them if these are small; large blocks
// follow as messages of their own. Receiving the next call's message is prepared one call ahead, so that a small call
// costs one trip. Used by the first local member's thread, except what any local member may call: call_of and
// block_data between meet and part, give_up when the world was cancelled.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/call.h"
#include "comm/failure.h"
#include "comm/process_link.h"
#include "tensor/buffer.h"

namespace plait::comm {

class Group;
struct Seat;

class NodeExchange {
 public:
  explicit NodeExchange(Group& group);

  // The exchange of the call that all local members have published, in two halves: begin sends and does not wait,
  // end waits. A Failure with an empty message: the world was cancelled. Between the two nobody's memory may go away
  // before give_up.
  void begin(const Seat& seat);
  bool has_begun(const Seat& seat) const;
  std::optional<Failure> end(Seat& seat);
  void give_up();
  // Whose message end() waits for now; from any thread.
  std::vector<int> awaited_members() const;

  const Call& call_of(int member) const { return calls_[static_cast<size_t>(member)]; }
  // The block of a member elsewhere for local member `local`.
  const std::byte* block_data(int source, int local) const { return blocks_[index(source, local)]; }

 private:
  struct Peer {
    int node = 0;
    std::vector<int> members;  // positions in the group
    // By parity of the call: local members may still read the last call's message.
    std::array<Buffer, 2> incoming;
    std::array<Buffer, 2> outgoing;
    std::array<std::unique_ptr<Transfer>, 2> expected;
  };
  struct Pending {
    std::unique_ptr<Transfer> transfer;
    const Peer* peer;
  };

  size_t index(int source, int local) const {
    return static_cast<size_t>(source) * local_members_.size() + static_cast<size_t>(local);
  }
  uint64_t slot(uint32_t call, uint64_t message) const;
  void expect(Peer& peer, uint32_t call);
  void send_to(Peer& peer, const Seat& seat);
  size_t write_records(std::byte* out, const Seat& seat, bool with_blocks) const;
  std::optional<Failure> read_records(const Peer& peer, const Seat& seat, bool& with_blocks, size_t& header_bytes);
  std::optional<Failure> check_records(const Seat& seat);
  void receive_blocks(Peer& peer, std::byte*& scratch, std::vector<Pending>& receives, const Seat& seat);
  void place_blocks(const Peer& peer, const std::byte* data);
  std::optional<Failure> wait(Transfer& transfer, const Peer& peer, Seat& seat);
  Failure time_out(const Peer& peer, const Seat& seat) const;
  std::optional<int> find_silent_node(const Peer& peer, const Seat& seat) const;
  const Call& published(const Seat& seat, int member) const;
  int64_t incoming_bytes(const Peer& peer) const;

  // fn(block, destination) for each message; destination -1: for all.
  template <typename Fn>
  void for_each_block(const Call& call, int source, std::span<const int> destinations, Fn&& fn) const;

  Group& group_;
  std::vector<int> local_members_;
  std::vector<Peer> peers_;
  uint64_t ranks_digest_ = 0;
  std::vector<Call> calls_;                   // [group size], of members elsewhere
  std::vector<std::vector<int64_t>> counts_;  // [group size], what calls_ of all-to-all point to
  std::vector<const std::byte*> blocks_;      // [group size, local members]
  Buffer scratch_;                            // large blocks from elsewhere
  uint32_t begun_ = 0;                        // the last call that has begun
  std::atomic<const Peer*> awaited_{nullptr};
  std::mutex sends_mutex_;  // giving up and clearing may meet
  std::vector<Pending> sends_;
};

}  // namespace plait::comm
