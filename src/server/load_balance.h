// Which replica gets a request. Values only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace plait {

// --load-balance-method
enum class LoadBalance {
  kTotalRequests,  // the one with the fewest unfinished requests
  kTotalTokens,    // the one whose unfinished requests have the fewest tokens, prompts and outputs so far
  kRoundRobin,     // one after the other
};

struct ReplicaLoad {
  bool ready = false;    // its engine computes; else requests wait until it does
  int64_t requests = 0;  // unfinished
  int64_t tokens = 0;    // theirs
  int64_t room = 0;      // requests that it may still be given
};

// Among the replicas that have room: those whose engine is ready, if there are any, and of these the method's choice;
// of equal ones the first. `turn` is the replica after the one that was chosen last. Nothing: none has room.
std::optional<size_t> choose_replica(LoadBalance method, std::span<const ReplicaLoad> loads, size_t turn);

}  // namespace plait
