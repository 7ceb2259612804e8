// All ranks of one engine: which process has which, one cancellation token, and the groups among them.
//
// One World per process, shared by its rank threads; every function may be called by any of them. Ranks are numbered
// across processes: node 0 has the first ones. The World outlives its Communicators.
#pragma once

#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "comm/communicator.h"
#include "comm/failure.h"
#include "comm/rendezvous.h"

namespace plait::comm {

class ControlLink;
class Group;
class ProcessLink;

class World {
 public:
  // All ranks are threads of this process.
  static std::shared_ptr<World> local(int ranks);
  // Meets the other processes (see Rendezvous), then connects with each of them. Call before other threads start:
  // SIGPIPE is ignored from then on.
  static Result<std::shared_ptr<World>> join(const RendezvousOptions& options);

  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  int size() const { return size_; }
  int this_node() const { return this_node_; }
  std::span<const Node> nodes() const { return nodes_; }
  int node_of(int rank) const;
  bool is_local(int rank) const { return node_of(rank) == this_node_; }
  std::string describe_rank(int rank) const;  // "rank 5 (node 1, 10.0.0.2)", or "rank 5" if there is one process

  // The group `name` as `rank` sees it. `ranks`: distinct ranks of the world in the group's order; every member names
  // the same list (checked at the first call). One Communicator per rank and group. kInvalid: says what is wrong.
  Result<Communicator> communicator(std::string_view name, std::span<const int> ranks, int rank);

  // How long any wait may take; none: for ever (as before every rank is ready). Groups may have their own. A wait that
  // has begun keeps its deadline.
  void set_deadline(std::optional<std::chrono::milliseconds> deadline);
  std::optional<std::chrono::milliseconds> deadline() const;

  // Ends every wait on every rank of the world, now and later, with kCancelled and this reason. The first reason
  // counts.
  void cancel(std::string reason, int rank = -1);
  // What ended the world; empty while it works.
  std::optional<Failure> failure() const;

  // What each rank here is doing now, in lines for people: which call it waits in, for whom, in which step, for how
  // long. Disturbs nobody.
  std::vector<std::string> describe_activity() const;

  // What this process is doing, for node 0, any short text in the place of the one before; and, on node 0, what the
  // other nodes said last. Needs no call of theirs, so it also tells about one that is busy or waits. Any thread.
  void set_note(std::string text);
  std::vector<NodeNote> notes();

  // For the members of comm/.
  Cancellation& cancellation() { return cancellation_; }
  ProcessLink* link() { return link_.get(); }  // nullptr: one process
  bool cores_to_spare() const { return cores_to_spare_; }
  // Members of a group on another node that have not begun a call; empty: that node does not answer.
  std::optional<std::vector<uint32_t>> ask_late_members(int node, uint32_t slot_prefix, uint32_t call);

 private:
  World(std::vector<Node> nodes, int this_node);
  std::vector<uint32_t> late_members(uint32_t slot_prefix, uint32_t call);
  void describe_activity_of(int rank, std::vector<std::string>& lines) const;

  std::vector<Node> nodes_;
  int this_node_ = 0;
  int size_ = 0;
  bool cores_to_spare_ = true;
  std::atomic<int64_t> deadline_ms_{0};  // 0: none
  Cancellation cancellation_;
  std::unique_ptr<ProcessLink> link_;
  std::unique_ptr<ControlLink> control_;
  mutable std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Group>, std::less<>> groups_;
};

}  // namespace plait::comm
