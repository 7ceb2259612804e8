#include "layout/cost.h"

namespace plait {

double ring_bytes(CollectiveKind kind, int ranks, double full_bytes) {
  const double share = static_cast<double>(ranks - 1) / ranks * full_bytes;
  switch (kind) {
    case CollectiveKind::kAllReduce:
      return 2 * share;
    case CollectiveKind::kReduceScatter:
    case CollectiveKind::kAllGather:
      return share;
    case CollectiveKind::kSlice:
      return 0;
    case CollectiveKind::kAllToAll:
    case CollectiveKind::kSendReceive:
      return full_bytes;
  }
  return 0;
}

double collective_seconds(const CostModel& model, CollectiveKind kind, int ranks, double full_bytes, bool spans_hosts) {
  // Keeping own rows of what is there already copies a share.
  if (kind == CollectiveKind::kSlice) return full_bytes / ranks / model.local_bytes_per_second;
  const double rounds = std::ceil(std::log2(ranks)) * (kind == CollectiveKind::kAllReduce ? 2 : 1);
  return model.call_s + rounds * (spans_hosts ? model.host_round_s : model.round_s) +
         ring_bytes(kind, ranks, full_bytes) / (spans_hosts ? model.host_bytes_per_second : model.bytes_per_second);
}

}  // namespace plait
