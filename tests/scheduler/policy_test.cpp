#include "scheduler/policy.h"

#include <gtest/gtest.h>

namespace plait {
namespace {

Sequence sequence_of(int64_t prompt_tokens, int64_t max_new_tokens, uint64_t arrival = 0, int32_t priority = 0) {
  Request request;
  request.prompt_ids.resize(static_cast<size_t>(prompt_tokens), 7);
  request.sampling.max_new_tokens = max_new_tokens;
  request.priority = priority;
  return Sequence(std::move(request), arrival, Clock::time_point{});
}

TEST(Policy, PrecedenceIsPriorityThenArrival) {
  const Sequence early = sequence_of(1, 1, 0, 0), late = sequence_of(1, 1, 1, 0), urgent = sequence_of(1, 1, 2, 5);
  const Precedence first_come{SchedulePolicy::kFirstCome}, priority{SchedulePolicy::kPriority};
  EXPECT_TRUE(first_come(&early, &late));
  EXPECT_TRUE(first_come(&late, &urgent));
  EXPECT_TRUE(priority(&urgent, &early));
  EXPECT_TRUE(priority(&early, &late));
  EXPECT_FALSE(priority(&late, &late));
}

TEST(Policy, RetractedRequestsLeadTheQueue) {
  const Sequence urgent = sequence_of(1, 1, 0, 5);
  Sequence retracted = sequence_of(1, 1, 1, 0);
  retracted.retracted = true;
  EXPECT_TRUE((QueueOrder{SchedulePolicy::kPriority}(&retracted, &urgent)));
  EXPECT_FALSE((QueueOrder{SchedulePolicy::kPriority}(&urgent, &retracted)));
}

TEST(Policy, BudgetIsWhatDecodingLeaves) {
  const SchedulerOptions options{.chunked_prefill_tokens = 64};
  EXPECT_EQ(PrefillBudget::beside(0, options).rows, 64);
  EXPECT_EQ(PrefillBudget::beside(60, options).rows, 4);
  EXPECT_EQ(PrefillBudget::beside(64, options).rows, 1);
  EXPECT_EQ(PrefillBudget::beside(200, options).rows, 1);

  PrefillBudget budget{.rows = 10, .logit_rows = 100};
  EXPECT_EQ(budget.take(sequence_of(6, 1)), 6);
  EXPECT_EQ(budget.take(sequence_of(6, 1)), 4);
  EXPECT_EQ(budget.take(sequence_of(6, 1)), 0);
}

TEST(Policy, PromptLogprobsBoundTheLogitsOfAStep) {
  Sequence sequence = sequence_of(100, 4);
  sequence.request.return_logprob = true;
  sequence.request.logprob_start = 41;  // needs the logits of rows 40 to 98, and samples from row 99
  PrefillBudget budget{.rows = 1000, .logit_rows = 8};
  EXPECT_EQ(sequence.first_logit_position(), 40);
  EXPECT_EQ(sequence.reusable_tokens(), 40);
  EXPECT_EQ(budget.take(sequence), 48);
  EXPECT_EQ(logit_rows(sequence, 48), 8);
  EXPECT_EQ(budget.logit_rows, 0);
  EXPECT_EQ(budget.take(sequence_of(30, 4)), 30) << "rows without such logits go on";
  PrefillBudget enough{.rows = 1000, .logit_rows = 60};
  EXPECT_EQ(enough.take(sequence), 100);
  EXPECT_EQ(logit_rows(sequence, 100), 60);
}

TEST(Policy, LogitRowsOfPlainRequests) {
  EXPECT_EQ(logit_rows(sequence_of(10, 4), 10), 1);
  EXPECT_EQ(logit_rows(sequence_of(10, 4), 9), 0);
  EXPECT_EQ(logit_rows(sequence_of(10, 0), 10), 0) << "nothing is sampled";
}

TEST(Policy, ReserveFallsAndRises) {
  GenerationReserve reserve(1);
  const Sequence candidate = sequence_of(16, 160);
  Sequence running_sequence = sequence_of(16, 160);
  Sequence* const running[] = {&running_sequence};
  EXPECT_EQ(reserve.pages(running, candidate, 16), 2 * 7);  // 0.7 of 160 tokens each
  for (int i = 0; i < 10'000; ++i) reserve.decode_step_passed();
  EXPECT_EQ(reserve.pages(running, candidate, 16), 2 * 1);
  for (int i = 0; i < 5; ++i) reserve.retraction_happened();
  EXPECT_EQ(reserve.pages(running, candidate, 16), 2 * 10) << "everything, so that nobody needs to be retracted";
}

TEST(Policy, WaitsForASharedPrefixInProgressOnly) {
  const Sequence candidate = sequence_of(40, 4);
  Sequence running = sequence_of(40, 4);
  running.computed_tokens = 16;
  EXPECT_TRUE(awaits_prefix_of(candidate, 16, running, 16));
  EXPECT_FALSE(awaits_prefix_of(candidate, 32, running, 16)) << "a third page is not complete";
  running.computed_tokens = 32;
  EXPECT_FALSE(awaits_prefix_of(candidate, 16, running, 16)) << "already there";
  running.computed_tokens = 0;
  running.tokens[3] = 8;
  EXPECT_FALSE(awaits_prefix_of(candidate, 0, running, 16)) << "another prompt";
}

}  // namespace
}  // namespace plait
