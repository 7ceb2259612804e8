// Where each rank stands: its coordinates in attention's view and in the experts' view, its groups, its host.
//
// One immutable value per replica, made after rules.h has passed; safe from any thread. Inside a pipeline stage the
// rank t counts, outer to inner, (data-parallel, context, attention-TP) for attention and (experts' data-parallel,
// expert, expert-TP) for experts; dense layers use runs of moe_dense_tp neighbours. Global rank = stage * tp + t.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "topology/parallel_config.h"

namespace plait {

enum class GroupKind : uint8_t {
  kWorld,    // every rank of the replica
  kTp,       // one pipeline stage
  kPp,       // the same place in every stage
  kAttnDp,   // the same place in every data-parallel rank
  kAttnCp,   // context ranks of one data-parallel rank, same attention-TP place
  kAttnTp,   // ranks that share the heads of the same rows
  kAttn,     // one data-parallel rank: context times attention-TP
  kMoeDp,    // the same place in every copy of the experts
  kMoeEp,    // ranks that share the list of experts
  kMoeTp,    // ranks that share each expert's width
  kMoe,      // one copy of all experts: expert times expert-TP
  kDenseTp,  // ranks that share a dense MLP's width
};
inline constexpr int kGroupKinds = 12;
const char* name_of(GroupKind kind);

struct RankCoordinates {
  int pp = 0;
  int tp = 0;  // place in the stage
  int attn_dp = 0, attn_cp = 0, attn_tp = 0;
  int moe_dp = 0, moe_ep = 0, moe_tp = 0;
  int dense_group = 0, dense_tp = 0;
};

// One rank's view of a group.
struct GroupView {
  int id = 0;                  // groups with equal rank lists have equal ids, whatever their kinds
  std::span<const int> ranks;  // global, ascending
  int index = 0;               // own place in `ranks`

  int size() const { return static_cast<int>(ranks.size()); }
};

class Topology {
 public:
  explicit Topology(const ParallelConfig& config);  // `config` has passed judge()

  const ParallelConfig& config() const { return config_; }
  int world() const { return config_.world_size(); }
  RankCoordinates coordinates(int rank) const;
  int rank_in_attention(int pp, int dp, int cp, int tp) const;
  int rank_in_experts(int pp, int dp, int ep, int tp) const;

  GroupView group(GroupKind kind, int rank) const;
  // Every distinct rank list, by id. A group of one rank is a group.
  const std::vector<std::vector<int>>& groups() const { return groups_; }

  int host_of(int rank) const { return rank / (world() / config_.nnodes); }
  bool on_one_host(std::span<const int> ranks) const;

 private:
  int id_of(std::vector<int> ranks);

  ParallelConfig config_;
  std::vector<std::vector<int>> groups_;
  std::vector<std::array<int, kGroupKinds>> group_ids_;  // [rank][kind]
};

}  // namespace plait
