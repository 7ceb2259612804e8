#include "topology/topology.h"

#include <set>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/topology/configurations.h"

namespace plait {
namespace {

using Lists = std::vector<std::vector<int>>;

// The distinct groups of a kind, ordered by their first rank.
Lists groups_of(const Topology& topology, GroupKind kind) {
  std::set<std::vector<int>> lists;
  for (int rank = 0; rank < topology.world(); ++rank) {
    const GroupView view = topology.group(kind, rank);
    lists.insert(std::vector<int>(view.ranks.begin(), view.ranks.end()));
  }
  return Lists(lists.begin(), lists.end());
}

Lists singles(int count) {
  Lists lists;
  for (int rank = 0; rank < count; ++rank) lists.push_back({rank});
  return lists;
}

const std::vector<int> kAll8 = {0, 1, 2, 3, 4, 5, 6, 7};

TEST(ParallelConfig, SharesOfALimit) {
  for (int ranks = 1; ranks <= 8; ++ranks)
    for (int64_t total = 0; total <= 20; ++total) {
      int64_t sum = 0;
      for (int dp = 0; dp < ranks; ++dp) {
        const int64_t share = data_parallel_share(total, dp, ranks);
        sum += share;
        EXPECT_TRUE(share == total / ranks || (share == total / ranks + 1 && dp < total % ranks));
        EXPECT_EQ(data_parallel_limit(total, dp, ranks), share > 0 ? share : 1) << "nobody is left without work";
      }
      EXPECT_EQ(sum, total);
    }
}

TEST(Topology, TensorParallelOnly) {
  const Topology topology({.tp_size = 8});
  EXPECT_EQ(groups_of(topology, GroupKind::kAttnTp), Lists{kAll8});
  EXPECT_EQ(groups_of(topology, GroupKind::kMoeTp), Lists{kAll8});
  EXPECT_EQ(groups_of(topology, GroupKind::kMoeEp), singles(8));
}

TEST(Topology, FourDataParallelRanksOfTwo) {
  const Topology topology({.tp_size = 8, .dp_size = 4, .enable_dp_attention = true});
  EXPECT_EQ(groups_of(topology, GroupKind::kAttnTp), (Lists{{0, 1}, {2, 3}, {4, 5}, {6, 7}}));
  EXPECT_EQ(groups_of(topology, GroupKind::kMoeTp), Lists{kAll8});
  for (int rank = 0; rank < 8; ++rank) EXPECT_EQ(topology.coordinates(rank).attn_dp, rank / 2);
}

TEST(Topology, EightDataParallelRanksAndEightExpertRanks) {
  const Topology topology({.tp_size = 8, .dp_size = 8, .enable_dp_attention = true, .ep_size = 8});
  EXPECT_EQ(groups_of(topology, GroupKind::kAttnTp), singles(8));
  EXPECT_EQ(groups_of(topology, GroupKind::kMoeEp), Lists{kAll8});
  EXPECT_EQ(groups_of(topology, GroupKind::kMoeTp), singles(8));
  for (int rank = 0; rank < 8; ++rank) EXPECT_EQ(topology.coordinates(rank).attn_dp, rank);
}

TEST(Topology, ExpertGroupsStrideByExpertTp) {
  const Topology topology({.tp_size = 8, .dp_size = 2, .enable_dp_attention = true, .ep_size = 4});
  EXPECT_EQ(groups_of(topology, GroupKind::kAttnTp), (Lists{{0, 1, 2, 3}, {4, 5, 6, 7}}));
  EXPECT_EQ(groups_of(topology, GroupKind::kMoeTp), (Lists{{0, 1}, {2, 3}, {4, 5}, {6, 7}}));
  EXPECT_EQ(groups_of(topology, GroupKind::kMoeEp), (Lists{{0, 2, 4, 6}, {1, 3, 5, 7}}));
}

TEST(Topology, ContextRanksOverTheWholeStage) {
  ParallelConfig config{.tp_size = 8, .attn_cp_size = 8};
  const Topology fused(config);
  EXPECT_EQ(groups_of(fused, GroupKind::kAttnTp), singles(8));
  EXPECT_EQ(groups_of(fused, GroupKind::kAttnCp), Lists{kAll8});
  EXPECT_EQ(groups_of(fused, GroupKind::kMoeTp), Lists{kAll8});
  for (int rank = 0; rank < 8; ++rank) EXPECT_EQ(fused.coordinates(rank).attn_dp, 0);

  config.ep_size = 8;
  config.moe_a2a_backend = MoeA2a::kAllToAll;
  EXPECT_EQ(groups_of(Topology(config), GroupKind::kMoeEp), Lists{kAll8});
}

TEST(Topology, ContextGroupsStrideByAttentionTp) {
  const Topology topology({.tp_size = 4, .attn_cp_size = 2});
  EXPECT_EQ(groups_of(topology, GroupKind::kAttnTp), (Lists{{0, 1}, {2, 3}}));
  EXPECT_EQ(groups_of(topology, GroupKind::kAttnCp), (Lists{{0, 2}, {1, 3}}));
  EXPECT_EQ(groups_of(topology, GroupKind::kMoeTp), (Lists{{0, 1, 2, 3}}));
}

TEST(Topology, StagesAreOutermostAndHostsAreRunsOfRanks) {
  const Topology topology({.tp_size = 4, .pp_size = 2, .nnodes = 4});
  EXPECT_EQ(groups_of(topology, GroupKind::kPp), (Lists{{0, 4}, {1, 5}, {2, 6}, {3, 7}}));
  EXPECT_EQ(groups_of(topology, GroupKind::kTp), (Lists{{0, 1, 2, 3}, {4, 5, 6, 7}}));
  for (int rank = 0; rank < 8; ++rank) EXPECT_EQ(topology.host_of(rank), rank / 2);
  EXPECT_TRUE(topology.on_one_host(std::vector<int>{4, 5}));
  EXPECT_FALSE(topology.on_one_host(std::vector<int>{0, 4}));
}

// What SGLang reuses by name (ep == tp, moe_dp == tp, attn_tp == tp) follows from equal rank lists.
TEST(Topology, EqualRankListsAreOneGroup) {
  const Topology experts({.tp_size = 8, .dp_size = 8, .enable_dp_attention = true, .ep_size = 8});
  const Topology copies({.tp_size = 8, .moe_dp_size = 8});
  for (int rank = 0; rank < 8; ++rank) {
    EXPECT_EQ(experts.group(GroupKind::kMoeEp, rank).id, experts.group(GroupKind::kTp, rank).id);
    EXPECT_EQ(experts.group(GroupKind::kTp, rank).id, experts.group(GroupKind::kWorld, rank).id);
    EXPECT_EQ(experts.group(GroupKind::kAttnTp, rank).id, experts.group(GroupKind::kMoeTp, rank).id);
    EXPECT_EQ(copies.group(GroupKind::kMoeDp, rank).id, copies.group(GroupKind::kTp, rank).id);
    EXPECT_EQ(copies.group(GroupKind::kAttnTp, rank).id, copies.group(GroupKind::kTp, rank).id);
  }
}

int expected_size(const ParallelConfig& config, GroupKind kind) {
  switch (kind) {
    case GroupKind::kWorld:
      return config.world_size();
    case GroupKind::kTp:
      return config.tp_size;
    case GroupKind::kPp:
      return config.pp_size;
    case GroupKind::kAttnDp:
      return config.attn_dp_size();
    case GroupKind::kAttnCp:
      return config.attn_cp_size;
    case GroupKind::kAttnTp:
      return config.attn_tp_size();
    case GroupKind::kAttn:
      return config.attn_cp_size * config.attn_tp_size();
    case GroupKind::kMoeDp:
      return config.moe_dp_size;
    case GroupKind::kMoeEp:
      return config.ep_size;
    case GroupKind::kMoeTp:
      return config.moe_tp_size();
    case GroupKind::kMoe:
      return config.moe_block_size();
    case GroupKind::kDenseTp:
      return config.dense_tp_size();
  }
  return 0;
}

bool same_values(RankCoordinates a, RankCoordinates b) {
  return a.pp == b.pp && a.tp == b.tp && a.attn_dp == b.attn_dp && a.attn_cp == b.attn_cp && a.attn_tp == b.attn_tp &&
         a.moe_dp == b.moe_dp && a.moe_ep == b.moe_ep && a.moe_tp == b.moe_tp;
}

// Groups have their size, contain their rank at its index, look the same from each member, and so partition the ranks.
void check_groups(const Topology& topology, int rank) {
  for (int k = 0; k < kGroupKinds; ++k) {
    const auto kind = static_cast<GroupKind>(k);
    const GroupView view = topology.group(kind, rank);
    ASSERT_EQ(view.size(), expected_size(topology.config(), kind)) << name_of(kind);
    ASSERT_EQ(view.ranks[view.index], rank);
    ASSERT_TRUE(std::is_sorted(view.ranks.begin(), view.ranks.end()));
    for (const int other : view.ranks) ASSERT_EQ(topology.group(kind, other).id, view.id);
    ASSERT_TRUE(std::equal(view.ranks.begin(), view.ranks.end(), topology.groups()[view.id].begin(),
                           topology.groups()[view.id].end()));
  }
}

TEST(Topology, EveryConfigurationIsConsistent) {
  const std::vector<ParallelConfig> configurations = test::valid_configurations(16);
  for (const ParallelConfig& config : configurations) {
    SCOPED_TRACE(to_flags(config));
    const Topology topology(config);
    const std::set<std::vector<int>> distinct(topology.groups().begin(), topology.groups().end());
    ASSERT_EQ(distinct.size(), topology.groups().size());
    for (int rank = 0; rank < topology.world(); ++rank) {
      const RankCoordinates at = topology.coordinates(rank);
      ASSERT_EQ(topology.rank_in_attention(at.pp, at.attn_dp, at.attn_cp, at.attn_tp), rank);
      ASSERT_EQ(topology.rank_in_experts(at.pp, at.moe_dp, at.moe_ep, at.moe_tp), rank);
      ASSERT_TRUE(
          same_values(topology.coordinates(topology.rank_in_experts(at.pp, at.moe_dp, at.moe_ep, at.moe_tp)), at));
      check_groups(topology, rank);
      if (HasFatalFailure()) return;
    }
  }
  fmt::print("{} configurations of up to 16 ranks\n", configurations.size());
}

}  // namespace
}  // namespace plait
