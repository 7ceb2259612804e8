#include "server/load_balance.h"

#include <tuple>

namespace plait {
namespace {

// The smallest one is chosen.
int64_t weight(LoadBalance method, std::span<const ReplicaLoad> loads, size_t replica, size_t turn) {
  switch (method) {
    case LoadBalance::kTotalRequests:
      return loads[replica].requests;
    case LoadBalance::kTotalTokens:
      return loads[replica].tokens;
    case LoadBalance::kRoundRobin:
      break;
  }
  return static_cast<int64_t>((replica + loads.size() - turn % loads.size()) % loads.size());
}

}  // namespace

std::optional<size_t> choose_replica(LoadBalance method, std::span<const ReplicaLoad> loads, size_t turn) {
  std::optional<size_t> chosen;
  const auto rank = [&](size_t replica) {
    return std::tuple(!loads[replica].ready, weight(method, loads, replica, turn));
  };
  for (size_t replica = 0; replica < loads.size(); ++replica) {
    if (loads[replica].room < 1) continue;
    if (!chosen || rank(replica) < rank(*chosen)) chosen = replica;
  }
  return chosen;
}

}  // namespace plait
