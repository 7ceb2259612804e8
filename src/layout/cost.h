// What a collective costs: bytes a rank sends in a ring, latency of its rounds, and local memory traffic.
//
// Values; the planner compares paths with it. Only the order of two alternatives matters: `plait plan` prints the bytes
// themselves.
#pragma once

#include <cstdint>

#include "layout/stage.h"

namespace plait {

struct CostModel {
  double call_s = 4e-6;            // of issuing any collective
  double round_s = 2e-6;           // per doubling of the group
  double bytes_per_second = 2e11;  // between ranks of one host
  double host_round_s = 1e-5;      // the same for groups that span hosts
  double host_bytes_per_second = 4e10;
  double local_bytes_per_second = 2e12;
  double flops_per_second = 4e14;
};

// Bytes that each rank sends in a ring. `full_bytes`: all rows of the group together (all-reduce: of the summed rows).
double ring_bytes(CollectiveKind kind, int ranks, double full_bytes);

// `spans_hosts`: the group has ranks on several hosts.
double collective_seconds(const CostModel& model, CollectiveKind kind, int ranks, double full_bytes, bool spans_hosts);

}  // namespace plait
