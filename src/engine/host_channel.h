// Bytes between the hosts of one engine: the first host says what is to be done, the others answer.
//
// Among the first ranks of all hosts; used by one thread at a time. It is a group of the world like any other: a wait
// that fails ends the world, and a failure of the world ends every wait. Channels of different names know nothing of
// each other.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "comm/communicator.h"
#include "comm/world.h"

namespace plait {

class HostChannel {
 public:
  // What no message of ours comes near; more is a broken peer.
  static constexpr uint64_t kMostBytes = uint64_t{1} << 32;

  // Every host opens the same names. kInvalid, as World::communicator.
  static Result<HostChannel> open(comm::World& world, std::string_view name);

  int host() const { return group_.rank(); }
  int hosts() const { return group_.size(); }

  // In order between two hosts. `name` says what it is, the same on both sides.
  Status send(std::string_view name, std::string_view bytes, int to);
  // kCorrupt: it is longer than `most_bytes`.
  Result<std::string> receive(std::string_view name, int from, uint64_t most_bytes = kMostBytes);

  // Waits of this host are not limited, whatever the world's limit: while nothing is to be done, nobody sends.
  void wait_for_ever() { group_.set_deadline(std::chrono::milliseconds(0)); }

 private:
  explicit HostChannel(comm::Communicator group) : group_(std::move(group)) {}

  comm::Communicator group_;
};

}  // namespace plait
