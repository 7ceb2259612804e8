#include "topology/topology.h"

#include "base/assert.h"

namespace plait {
namespace {

// A group is every rank that agrees with a given one in these coordinates.
using SameGroup = bool (*)(const RankCoordinates& a, const RankCoordinates& b);

struct KindInfo {
  GroupKind kind;
  const char* name;
  SameGroup same;
};

using Rank = const RankCoordinates&;
constexpr KindInfo kKinds[kGroupKinds] = {
    {GroupKind::kWorld, "world", [](Rank, Rank) { return true; }},
    {GroupKind::kTp, "tp", [](Rank a, Rank b) { return a.pp == b.pp; }},
    {GroupKind::kPp, "pp", [](Rank a, Rank b) { return a.tp == b.tp; }},
    {GroupKind::kAttnDp, "attn_dp",
     [](Rank a, Rank b) { return a.pp == b.pp && a.attn_cp == b.attn_cp && a.attn_tp == b.attn_tp; }},
    {GroupKind::kAttnCp, "attn_cp",
     [](Rank a, Rank b) { return a.pp == b.pp && a.attn_dp == b.attn_dp && a.attn_tp == b.attn_tp; }},
    {GroupKind::kAttnTp, "attn_tp",
     [](Rank a, Rank b) { return a.pp == b.pp && a.attn_dp == b.attn_dp && a.attn_cp == b.attn_cp; }},
    {GroupKind::kAttn, "attn", [](Rank a, Rank b) { return a.pp == b.pp && a.attn_dp == b.attn_dp; }},
    {GroupKind::kMoeDp, "moe_dp",
     [](Rank a, Rank b) { return a.pp == b.pp && a.moe_ep == b.moe_ep && a.moe_tp == b.moe_tp; }},
    {GroupKind::kMoeEp, "moe_ep",
     [](Rank a, Rank b) { return a.pp == b.pp && a.moe_dp == b.moe_dp && a.moe_tp == b.moe_tp; }},
    {GroupKind::kMoeTp, "moe_tp",
     [](Rank a, Rank b) { return a.pp == b.pp && a.moe_dp == b.moe_dp && a.moe_ep == b.moe_ep; }},
    {GroupKind::kMoe, "moe", [](Rank a, Rank b) { return a.pp == b.pp && a.moe_dp == b.moe_dp; }},
    {GroupKind::kDenseTp, "dense_tp", [](Rank a, Rank b) { return a.pp == b.pp && a.dense_group == b.dense_group; }},
};

}  // namespace

const char* name_of(GroupKind kind) {
  return kKinds[static_cast<int>(kind)].name;
}

Topology::Topology(const ParallelConfig& config) : config_(config), group_ids_(config.world_size()) {
  PLAIT_ASSERT(config.tp_size % (config.attn_dp_size() * config.attn_cp_size) == 0 &&
                   config.tp_size % (config.ep_size * config.moe_dp_size) == 0 &&
                   config.tp_size % config.dense_tp_size() == 0 && world() % config.nnodes == 0,
               "a topology is made of a configuration that judge() accepted");
  std::vector<RankCoordinates> all(world());
  for (int rank = 0; rank < world(); ++rank) all[rank] = coordinates(rank);
  for (int rank = 0; rank < world(); ++rank)
    for (const KindInfo& info : kKinds) {
      std::vector<int> ranks;
      for (int other = 0; other < world(); ++other)
        if (info.same(all[rank], all[other])) ranks.push_back(other);
      group_ids_[rank][static_cast<int>(info.kind)] = id_of(std::move(ranks));
    }
}

int Topology::id_of(std::vector<int> ranks) {
  const auto found = std::find(groups_.begin(), groups_.end(), ranks);
  if (found != groups_.end()) return static_cast<int>(found - groups_.begin());
  groups_.push_back(std::move(ranks));
  return static_cast<int>(groups_.size()) - 1;
}

RankCoordinates Topology::coordinates(int rank) const {
  PLAIT_ASSERT(rank >= 0 && rank < world(), "a rank of this replica");
  const ParallelConfig& c = config_;
  const int t = rank % c.tp_size;
  return {.pp = rank / c.tp_size,
          .tp = t,
          .attn_dp = t / (c.attn_tp_size() * c.attn_cp_size),
          .attn_cp = t / c.attn_tp_size() % c.attn_cp_size,
          .attn_tp = t % c.attn_tp_size(),
          .moe_dp = t / (c.moe_tp_size() * c.ep_size),
          .moe_ep = t / c.moe_tp_size() % c.ep_size,
          .moe_tp = t % c.moe_tp_size(),
          .dense_group = t / c.dense_tp_size(),
          .dense_tp = t % c.dense_tp_size()};
}

int Topology::rank_in_attention(int pp, int dp, int cp, int tp) const {
  return pp * config_.tp_size + (dp * config_.attn_cp_size + cp) * config_.attn_tp_size() + tp;
}

int Topology::rank_in_experts(int pp, int dp, int ep, int tp) const {
  return pp * config_.tp_size + (dp * config_.ep_size + ep) * config_.moe_tp_size() + tp;
}

GroupView Topology::group(GroupKind kind, int rank) const {
  const int id = group_ids_.at(rank)[static_cast<int>(kind)];
  const std::vector<int>& ranks = groups_[id];
  const auto own = std::lower_bound(ranks.begin(), ranks.end(), rank);
  return {id, ranks, static_cast<int>(own - ranks.begin())};
}

bool Topology::on_one_host(std::span<const int> ranks) const {
  return std::all_of(ranks.begin(), ranks.end(), [&](int rank) { return host_of(rank) == host_of(ranks.front()); });
}

}  // namespace plait
