// The steps before traffic: every mode that a role can have, none that it cannot, each within its room.
#include "engine/first_touch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace plait {
namespace {

using enum StepMode;
using ::testing::ElementsAre;

constexpr DisaggregationMode kRoles[] = {DisaggregationMode::kNull, DisaggregationMode::kPrefill,
                                         DisaggregationMode::kDecode};
constexpr TouchRoom kRoom{.kv_pages = 100, .page_tokens = 16, .step_rows = 2048, .sequences = 64};

TEST(FirstTouch, ModesFollowTheRole) {
  EXPECT_THAT(touched_modes(DisaggregationMode::kNull, kRoom), ElementsAre(kPrefill, kDecode, kMixed));
  EXPECT_THAT(touched_modes(DisaggregationMode::kPrefill, kRoom), ElementsAre(kPrefill));
  EXPECT_THAT(touched_modes(DisaggregationMode::kDecode, kRoom), ElementsAre(kDecode));
  TouchRoom one_token{};
  EXPECT_THAT(touched_modes(DisaggregationMode::kNull, one_token), ElementsAre(kPrefill));
}

TEST(FirstTouch, RefusesWhatTheRoleNeverHas) {
  for (const StepMode mode : {kPrefill, kMixed, kVerify})
    EXPECT_EQ(first_touch_step(mode, DisaggregationMode::kDecode, kRoom).error().kind, ErrorKind::kUnsupported);
  for (const StepMode mode : {kDecode, kMixed, kVerify})
    EXPECT_EQ(first_touch_step(mode, DisaggregationMode::kPrefill, kRoom).error().kind, ErrorKind::kUnsupported);
  EXPECT_EQ(first_touch_step(kVerify, DisaggregationMode::kNull, kRoom).error().kind, ErrorKind::kUnsupported);
  EXPECT_FALSE(has_mode(DisaggregationMode::kPrefill, kVerify));
  EXPECT_TRUE(has_mode(DisaggregationMode::kDecode, kVerify));
}

// Any room: the mode is the one asked for, and nothing is outside of the pool or of a step.
TEST(FirstTouch, StepsStayWithinTheirRoom) {
  int cases = 0;
  for (const DisaggregationMode role : kRoles)
    for (const int64_t pages : {1, 2, 3, 100})
      for (const int64_t page_tokens : {1, 2, 16, 64})
        for (const int64_t rows : {1, 2, 5, 2048})
          for (const int64_t sequences : {1, 2, 64}) {
            const TouchRoom room{pages, page_tokens, rows, sequences};
            for (const StepMode mode : touched_modes(role, room)) {
              const auto step = first_touch_step(mode, role, room);
              ASSERT_FALSE(step.has_error()) << step.error().message;
              ++cases;
              EXPECT_EQ(step->mode, mode);
              EXPECT_LE(step->rows(), rows);
              EXPECT_LE(std::ssize(step->sequences), sequences);
              EXPECT_EQ(step->logit_rows.size(), step->sequences.size());
              std::vector<int32_t> taken;
              for (const StepSequence& sequence : step->sequences) {
                EXPECT_LT(sequence.state_slot, sequences);
                EXPECT_GE(std::ssize(sequence.pages) * page_tokens, sequence.first_position + sequence.row_count);
                for (const int32_t page : sequence.pages) {
                  EXPECT_GE(page, 0);
                  EXPECT_LT(page, pages);
                  taken.push_back(page);
                }
                // A decode node has no prompts, not even somebody else's rows in its cache.
                if (role == DisaggregationMode::kDecode) {
                  EXPECT_EQ(sequence.first_position, 0);
                }
              }
              std::ranges::sort(taken);
              EXPECT_EQ(std::ranges::adjacent_find(taken), taken.end()) << "two sequences share a page";
            }
          }
  std::printf("%d first steps in rooms of all sizes\n", cases);
}

}  // namespace
}  // namespace plait
