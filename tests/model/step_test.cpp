#include "model/step.h"

#include <gtest/gtest.h>

#include "model/kv_spec.h"
#include "model/mla.h"

namespace plait {
namespace {

std::vector<int32_t> ids(int64_t count) {
  std::vector<int32_t> ids(count);
  for (int64_t i = 0; i < count; ++i) ids[i] = static_cast<int32_t>(100 + i);
  return ids;
}

const std::vector<int32_t> kPages{7, 3, 5};

TEST(StepBuilder, IsIdleWithoutRows) {
  const Step step = StepBuilder(9).build();
  EXPECT_EQ(step.mode, StepMode::kIdle);
  EXPECT_EQ(step.sequence_number, 9);
  EXPECT_EQ(step.rows(), 0);
  EXPECT_EQ(step.true_rows, std::vector<int64_t>{0});
  EXPECT_EQ(step.padded_rows, std::vector<int64_t>{0});
}

TEST(StepBuilder, PlacesRowsPositionsAndLogits) {
  StepBuilder builder(1);
  builder.add(ids(3), 0, kPages, /*expanded_until=*/10, /*logit_count=*/0, /*state_slot=*/4);
  builder.add(ids(2), 8, kPages, 10, 1);
  builder.add(ids(1), 20, kPages, 10, 1);
  const Step step = std::move(builder).build();
  EXPECT_EQ(step.mode, StepMode::kMixed);
  EXPECT_EQ(step.positions, (std::vector<int32_t>{0, 1, 2, 8, 9, 20}));
  EXPECT_EQ(step.token_ids, (std::vector<int32_t>{100, 101, 102, 100, 101, 100}));
  EXPECT_EQ(step.logit_rows, (std::vector<int64_t>{4, 5}));
  EXPECT_EQ(step.true_rows, std::vector<int64_t>{6});
  ASSERT_EQ(step.sequences.size(), 3u);
  EXPECT_EQ(step.sequences[0].state_slot, 4);
  EXPECT_EQ(step.sequences[1].row_begin, 3);
  EXPECT_EQ(step.sequences[1].row_count, 2);
  EXPECT_EQ(step.sequences[2].pages, kPages);
}

TEST(StepBuilder, ModeFollowsFromTheRows) {
  const auto mode_of = [](int64_t rows, int64_t first_position) {
    StepBuilder builder(1);
    builder.add(ids(rows), first_position, kPages, /*expanded_until=*/10, 1);
    return std::move(builder).build().mode;
  };
  EXPECT_EQ(mode_of(1, 10), StepMode::kDecode);
  EXPECT_EQ(mode_of(1, 9), StepMode::kPrefill);  // last prompt token
  EXPECT_EQ(mode_of(5, 0), StepMode::kPrefill);
  EXPECT_EQ(mode_of(5, 10), StepMode::kPrefill);  // outputs of a resumed request
}

TEST(MlaRows, SplitSequencesAtTheEndOfTheirPrompt) {
  StepBuilder builder(1);
  builder.add(ids(4), 0, kPages, /*expanded_until=*/4, 0);   // all expanded
  builder.add(ids(5), 2, kPages, /*expanded_until=*/4, 0);   // two expanded, three absorbed
  builder.add(ids(1), 30, kPages, /*expanded_until=*/4, 1);  // absorbed, next to the ones before
  builder.add(ids(2), 0, kPages, /*expanded_until=*/9, 0);
  builder.add(ids(2), 9, kPages, /*expanded_until=*/9, 2);
  const Step step = std::move(builder).build();
  MlaRows rows;
  for (int repetition = 0; repetition < 2; ++repetition) {  // memory of the step before is reused
    rows.assign(step, {});
    ASSERT_EQ(rows.all.size(), 5u);
    EXPECT_EQ(rows.expanded_rows, 8);
    EXPECT_EQ(rows.absorbed_rows, 6);
    ASSERT_EQ(rows.expanded.size(), 3u);
    EXPECT_EQ(rows.expanded[1].row_begin, 4);
    EXPECT_EQ(rows.expanded[1].row_count, 2);
    EXPECT_EQ(rows.expanded[1].first_position, 2);
    ASSERT_EQ(rows.absorbed.size(), 3u);
    EXPECT_EQ(rows.absorbed[0].row_begin, 0);
    EXPECT_EQ(rows.absorbed[0].first_position, 4);
    EXPECT_EQ(rows.absorbed[0].row_count, 3);
    EXPECT_EQ(rows.absorbed[1].row_begin, 3);
    EXPECT_EQ(rows.absorbed[2].row_begin, 4);
    ASSERT_EQ(rows.runs.size(), 2u);
    EXPECT_EQ(rows.runs[0].row_begin, 6);
    EXPECT_EQ(rows.runs[0].row_count, 4);
    EXPECT_EQ(rows.runs[1].row_begin, 12);
    EXPECT_EQ(rows.runs[1].compact_begin, 4);
  }
}

TEST(KvSpec, CountsEveryKindOfGrowth) {
  KvComponent latent{.name = "latent", .layers = 61, .row_width = 576, .dtype = DType::kBF16};
  KvComponent compressed{
      .name = "compressed", .tokens_per_row = 4, .layers = 21, .row_width = 584, .dtype = DType::kU8};
  KvComponent window{.name = "window",
                     .growth = KvGrowth::kWindow,
                     .window_tokens = 128,
                     .layers = 43,
                     .row_width = 584,
                     .dtype = DType::kU8};
  KvComponent state{.name = "state",
                    .growth = KvGrowth::kPerSequence,
                    .rows_per_sequence = 8,
                    .layers = 20,
                    .row_width = 1024,
                    .dtype = DType::kF32};
  EXPECT_EQ(latent.bytes_per_token(), 70272);  // V3
  EXPECT_EQ(compressed.bytes_per_token(), 3066);
  EXPECT_EQ(window.bytes_per_sequence(), 43 * 128 * 584);
  KvSpec spec{{latent, compressed, window, state}};
  EXPECT_EQ(spec.bytes_per_token(), 70272 + 3066);
  EXPECT_EQ(spec.bytes_per_sequence(), 43 * 128 * 584 + 20 * 8 * 4096);
}

}  // namespace
}  // namespace plait
