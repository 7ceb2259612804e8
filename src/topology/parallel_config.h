// How many ranks there are and how they share the work: the parallel flags as one plain value.
//
// Spelled as SGLang spells its flags, because scripts know them. `tp_size` is the width of one pipeline stage:
// attention data parallelism, context parallelism and expert parallelism live inside it. rules.h says which values go
// together; the accessors below are meaningful once those rules have passed. Plain value, no owner.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

namespace plait {

enum class CpStrategy : uint8_t {
  kInterleave,  // row i of a data-parallel rank's batch goes to context rank i % cp
  kZigzag,      // the batch is cut into 2 * cp blocks; context rank r has blocks r and 2 * cp - 1 - r
};

// How tokens reach the ranks that hold their experts.
enum class MoeA2a : uint8_t {
  kNone,      // every rank of the expert group has every token and computes its part: a sum is owed
  kAllToAll,  // dispatch and combine ("deepep" is accepted as its name)
};

enum class DeepepMode : uint8_t { kAuto, kNormal, kLowLatency };

struct ParallelConfig {
  int tp_size = 1;  // --tp-size: ranks of one pipeline stage
  int pp_size = 1;  // --pp-size: pipeline stages
  int dp_size = 1;  // --dp-size: inside tp_size with --enable-dp-attention, else whole replicas
  bool enable_dp_attention = false;
  bool enable_dp_lm_head = false;  // vocabulary head inside the attention-TP group

  int ep_size = 1;                             // --ep-size
  int moe_dp_size = 1;                         // --moe-dp-size: copies of all experts inside a stage
  std::optional<int> moe_dense_tp_size;        // --moe-dense-tp-size; absent: tp_size
  MoeA2a moe_a2a_backend = MoeA2a::kNone;      // --moe-a2a-backend
  DeepepMode deepep_mode = DeepepMode::kAuto;  // --deepep-mode

  int attn_cp_size = 1;                   // --attn-cp-size
  bool enable_prefill_cp = false;         // --enable-prefill-cp
  std::optional<CpStrategy> cp_strategy;  // --cp-strategy; absent: interleave
  bool prefill_cp_kv_sharded = false;     // --prefill-cp-kv-sharded: a context rank keeps only its own rows' KV pages

  bool enable_allreduce_fusion = false;  // --enable-flashinfer-allreduce-fusion: all-reduce + add + norm in one

  int nnodes = 1;              // --nnodes
  int node_rank = 0;           // --node-rank
  std::string dist_init_addr;  // --dist-init-addr: host:port where the hosts meet

  bool operator==(const ParallelConfig&) const = default;

  int attn_dp_size() const { return enable_dp_attention ? dp_size : 1; }
  int replicas() const { return enable_dp_attention ? 1 : dp_size; }
  int attn_tp_size() const { return tp_size / (attn_dp_size() * attn_cp_size); }
  int moe_tp_size() const { return tp_size / (ep_size * moe_dp_size); }
  // Ranks that together hold every expert once: expert-parallel width times the tensor-parallel width of an expert.
  int moe_block_size() const { return tp_size / moe_dp_size; }
  int dense_tp_size() const { return moe_dense_tp_size.value_or(tp_size); }
  int world_size() const { return tp_size * pp_size; }  // of one replica
  CpStrategy strategy() const { return cp_strategy.value_or(CpStrategy::kInterleave); }
};

// Part `dp` of a limit or count that holds for `dp_ranks` data-parallel ranks together, 0 <= dp < dp_ranks. What does
// not divide goes to the first ones, so part 0 is the largest.
constexpr int64_t data_parallel_share(int64_t total, int dp, int dp_ranks) {
  return (total + dp_ranks - 1 - dp) / dp_ranks;
}
// The same of a limit that is to leave every rank able to work.
constexpr int64_t data_parallel_limit(int64_t total, int dp, int dp_ranks) {
  return std::max<int64_t>(data_parallel_share(total, dp, dp_ranks), 1);
}

const char* name_of(CpStrategy strategy);
const char* name_of(MoeA2a backend);
const char* name_of(DeepepMode mode);

// The flags that differ from their defaults, as one would type them; "--tp-size 1" if none does.
std::string to_flags(const ParallelConfig& config);

}  // namespace plait
