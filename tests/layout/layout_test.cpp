#include <numeric>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "layout/row_order.h"
#include "tests/topology/configurations.h"

namespace plait {
namespace {

TEST(TokenAxes, AxesOfWidthOneDoNotExist) {
  EXPECT_EQ(TokenAxes(ParallelConfig{}).count(), 0);
  const TokenAxes tp({.tp_size = 8});
  EXPECT_EQ(tp.count(), 1);
  EXPECT_EQ(tp.attn_tp(), tp.all());
  EXPECT_TRUE(tp.attn_dp().empty());
  // Full and scattered rows have equal group sizes with one context rank per rank, but not equal layouts.
  const TokenAxes cp({.tp_size = 8, .attn_cp_size = 8});
  EXPECT_NE(Layout{cp.all()}, Layout{});
}

TEST(TokenAxes, BlocksOfExpertsAndDenseLayersCutAxes) {
  const TokenAxes axes({.tp_size = 8, .dp_size = 4, .enable_dp_attention = true, .moe_dp_size = 2});
  ASSERT_EQ(axes.count(), 3);  // two halves of the DP ranks, two DP ranks each, two attention-TP ranks each
  EXPECT_EQ(axes.width(axes.experts()), 4);
  EXPECT_EQ(axes.to_string(axes.attn_dp()), "{attn_dp}");
  EXPECT_EQ(axes.to_string(axes.attn_dp() - axes.experts()), "{attn_dp(2 x 4)}");
  EXPECT_EQ(axes.group(axes.experts(), 5), (std::vector<int>{4, 5, 6, 7}));
  EXPECT_EQ(axes.group(axes.attn_tp(), 5), (std::vector<int>{4, 5}));
  EXPECT_EQ(axes.group(axes.attn_dp(), 5), (std::vector<int>{1, 3, 5, 7}));
}

TEST(TokenAxes, GroupsHaveTheirUsualNames) {
  const TokenAxes axes({.tp_size = 8, .dp_size = 2, .enable_dp_attention = true, .attn_cp_size = 2});
  EXPECT_EQ(axes.group_name(axes.all()), "tp");
  EXPECT_EQ(axes.group_name(axes.attn_tp()), "attn_tp");
  EXPECT_EQ(axes.group_name(axes.attn_cp()), "attn_cp");
  EXPECT_EQ(axes.group_name(axes.attn_cp() | axes.attn_tp()), "attn");
  EXPECT_EQ(axes.group_name(axes.attn_dp() | axes.attn_tp()), "attn_dp+attn_tp");
}

// Seed 19918's second bug: 97 running requests and eight attention-TP ranks.
TEST(StepRows, NinetySevenRequestsOnEightRanks) {
  EXPECT_EQ(pad_rows({97}, {.shards = 8}, PaddingMode::kMaxLen).padded_rows, std::vector<int64_t>{104});
  EXPECT_EQ(pad_rows({97 * 3}, {.shards = 8, .tokens_per_request = 3}, PaddingMode::kMaxLen).padded_rows,
            std::vector<int64_t>{312});
}

TEST(StepRows, ModesKeepTrueCountsBesidePaddedOnes) {
  const StepRows sum = pad_rows({5, 0, 9}, {.shards = 4}, PaddingMode::kSumLen);
  EXPECT_EQ(sum.true_rows, (std::vector<int64_t>{5, 0, 9}));
  EXPECT_EQ(sum.padded_rows, (std::vector<int64_t>{8, 0, 12}));
  EXPECT_EQ(sum.begin, (std::vector<int64_t>{0, 8, 8}));
  EXPECT_EQ(sum.total(), 20);
  const StepRows max = pad_rows({5, 0, 9}, {.shards = 4}, PaddingMode::kMaxLen);
  EXPECT_EQ(max.true_rows, (std::vector<int64_t>{5, 0, 9}));
  EXPECT_EQ(max.padded_rows, (std::vector<int64_t>{12, 12, 12}));
  EXPECT_EQ(max.total(), 36);
  EXPECT_EQ(pad_rows({0, 0}, {.shards = 4}, PaddingMode::kMaxLen).total(), 0);
}

TEST(StepRows, ModeFollowsTheStep) {
  const std::vector<int64_t> even = {8, 8}, uneven = {64, 0, 0, 0}, half = {64, 64, 0, 0};
  EXPECT_EQ(choose_padding_mode(even, {}, true, false), PaddingMode::kSumLen);
  EXPECT_EQ(choose_padding_mode(std::vector<int64_t>{8}, {}, true, false), PaddingMode::kMaxLen);
  EXPECT_EQ(choose_padding_mode(uneven, {}, true, true), PaddingMode::kMaxLen);
  EXPECT_EQ(choose_padding_mode(even, {}, false, false), PaddingMode::kMaxLen);
  EXPECT_EQ(choose_padding_mode(half, {}, false, false), PaddingMode::kMaxLen);
  EXPECT_EQ(choose_padding_mode(uneven, {}, false, false), PaddingMode::kSumLen);
}

TEST(StepRows, PaddedCountsAreAlignedAndLeast) {
  int cases = 0;
  for (int64_t shards : {1, 2, 3, 8})
    for (int64_t blocks : {1, 2, 4, 6})
      for (int64_t draft : {1, 2, 3})
        for (int64_t rows = 0; rows < 100; rows += draft) {
          ++cases;
          const RowAlignment alignment{shards, blocks, draft};
          const int64_t padded = pad_rows({rows}, alignment, PaddingMode::kSumLen).padded_rows[0];
          ASSERT_TRUE(padded % shards == 0 && padded % blocks == 0 && padded % draft == 0);
          ASSERT_TRUE(padded >= rows && padded - rows < alignment.value());
        }
  fmt::print("{} cases\n", cases);
}

TEST(ContextParallel, IsUsedIfEachBlockCanHaveARow) {
  ParallelConfig config{.tp_size = 4, .attn_cp_size = 4, .enable_prefill_cp = true};
  EXPECT_FALSE(uses_context_parallel(config, std::vector<int64_t>{3}));
  EXPECT_TRUE(uses_context_parallel(config, std::vector<int64_t>{4}));
  EXPECT_TRUE(uses_context_parallel(config, std::vector<int64_t>{0, 4}));
  config.cp_strategy = CpStrategy::kZigzag;
  EXPECT_FALSE(uses_context_parallel(config, std::vector<int64_t>{7}));
  EXPECT_TRUE(uses_context_parallel(config, std::vector<int64_t>{8}));
}

TEST(ContextOrder, IsAPermutationWithEqualShares) {
  int cases = 0;
  for (const CpStrategy strategy : {CpStrategy::kInterleave, CpStrategy::kZigzag})
    for (const int64_t cp : {1, 2, 3, 4, 8})
      for (int64_t rows = 0; rows <= 96; rows += 2 * cp) {
        const ContextOrder order{strategy, cp, rows};
        std::vector<int> seen(rows);
        for (int64_t place = 0; place < rows; ++place, ++cases) {
          ASSERT_EQ(order.place(order.batch_row(place)), place);
          ++seen[order.batch_row(place)];
        }
        ASSERT_EQ(std::count(seen.begin(), seen.end(), 1), rows);
      }
  fmt::print("{} places\n", cases);
}

TEST(ContextOrder, StrategiesAsDefined) {
  const ContextOrder interleave{CpStrategy::kInterleave, 4, 16};
  const ContextOrder zigzag{CpStrategy::kZigzag, 2, 16};
  std::vector<int64_t> second, first;
  for (int64_t i = 0; i < 4; ++i) second.push_back(interleave.batch_row(4 + i));
  for (int64_t i = 0; i < 8; ++i) first.push_back(zigzag.batch_row(i));
  EXPECT_EQ(second, (std::vector<int64_t>{1, 5, 9, 13}));                // rank 1 of 4: every fourth from 1
  EXPECT_EQ(first, (std::vector<int64_t>{0, 1, 2, 3, 12, 13, 14, 15}));  // rank 0 of 2: blocks 0 and 3
}

// Along any set of axes the shards partition the rows: ranks that differ only along others hold the same.
TEST(RowShards, PartitionTheRowsInEveryLayout) {
  int64_t layouts = 0;
  for (const ParallelConfig& config : test::valid_configurations(8)) {
    const TokenAxes axes(config);
    const int shards = axes.width(axes.all() - axes.attn_dp());
    std::vector<int64_t> counts(config.attn_dp_size());
    for (size_t dp = 0; dp < counts.size(); ++dp) counts[dp] = static_cast<int64_t>(5 * dp);
    const RowShards rows(axes, axes.all(), pad_rows(counts, {.shards = shards}, PaddingMode::kSumLen));
    for (uint32_t bits = 0; bits <= axes.all().bits(); ++bits, ++layouts) {
      const AxisSet sharded = AxisSet::of_bits(bits);
      std::vector<int> holders(rows.rows().total());
      for (int rank = 0; rank < axes.ranks(); ++rank) {
        int64_t last = -1;
        for (const RowRun& run : rows.held(rank, sharded)) {
          ASSERT_GT(run.begin, last);
          last = run.begin + run.count - 1;
          for (int64_t row = run.begin; row <= last; ++row) ++holders[row];
        }
        const std::vector<int> peers = axes.group(axes.all() - sharded, rank);
        ASSERT_EQ(rows.held(rank, sharded), rows.held(peers.front(), sharded));
      }
      const int each = axes.ranks() / axes.width(sharded);
      ASSERT_EQ(std::count(holders.begin(), holders.end(), each), rows.rows().total()) << to_flags(config);
    }
  }
  fmt::print("{} layouts\n", layouts);
}

// The flag says exactly whether pieces put together by rank stand in storage order.
TEST(RowShards, ReorderFlagIsExact) {
  int64_t moves = 0, reorders = 0;
  for (const ParallelConfig& config : test::valid_configurations(8)) {
    const TokenAxes axes(config);
    const int shards = axes.width(axes.all() - axes.attn_dp());
    const RowShards rows(
        axes, axes.all(),
        pad_rows(std::vector<int64_t>(config.attn_dp_size(), 7), {.shards = shards}, PaddingMode::kMaxLen));
    for (uint32_t apart = 0; apart <= axes.all().bits(); ++apart)
      for (uint32_t along = apart; along != 0; along = (along - 1) & apart, ++moves) {
        const AxisSet before = AxisSet::of_bits(apart), gathered = AxisSet::of_bits(along);
        std::vector<int64_t> together, wanted;
        const auto append = [](std::vector<int64_t>& places, const std::vector<RowRun>& runs) {
          for (const RowRun& run : runs)
            for (int64_t i = 0; i < run.count; ++i) places.push_back(run.begin + i);
        };
        for (const int peer : axes.group(gathered, 0)) append(together, rows.held(peer, before));
        append(wanted, rows.held(0, before - gathered));
        const bool reorder = needs_reorder(axes, axes.all(), before, gathered);
        reorders += reorder;
        ASSERT_EQ(reorder, together != wanted) << to_flags(config);
      }
  }
  fmt::print("{} gathers, {} need rows moved locally\n", moves, reorders);
}

}  // namespace
}  // namespace plait
