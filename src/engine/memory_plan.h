// Divides memory between weights, KV pools and scratch, before anything large is allocated. A pure function.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "engine/engine.h"
#include "model/kv_spec.h"

namespace plait {

struct MemoryNeeds {
  size_t available_bytes = 0;  // at start, before weights
  size_t weight_bytes = 0;
  size_t scratch_bytes = 0;
  KvSpec kv;
  int64_t routed_expert_bytes_per_token = 0;  // kept beside each token of KV; 0: not kept
  int64_t page_tokens = 0;
  double mem_fraction_static = 0;
  int64_t max_total_tokens = 0;  // 0: as many as fit and can be used
  int64_t max_running_requests = 0;
  int64_t context_tokens = 0;
};

// Weights and KV take at most mem_fraction_static of what is available, and leave room for scratch. Of the KV memory
// what belongs to sequences comes first, pages get the rest, but never more than max_running_requests contexts can
// fill. kInvalid: page size and KvSpec do not fit together. kExhausted: no room for one page; the message holds the
// table and names the flags that help.
Result<MemoryPlan> plan_memory(const MemoryNeeds& needs);

}  // namespace plait
