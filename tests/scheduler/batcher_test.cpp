#include "scheduler/batcher.h"

#include <numeric>

#include <gmock/gmock.h>

#include "tests/scheduler/batcher_harness.h"

namespace plait {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Tokens first, first + 1, ... : prompts of different `first` share nothing.
Request request_of(RequestId id, int64_t prompt_tokens, int64_t max_new_tokens, int32_t first = 0) {
  Request request;
  request.id = id;
  for (int64_t i = 0; i < prompt_tokens; ++i)
    request.prompt_ids.push_back(static_cast<int32_t>((first + i) % FakeModel::kVocab));
  request.sampling.max_new_tokens = max_new_tokens;
  request.sampling.seed = id;
  return request;
}

std::vector<int64_t> rows_of(const Step& step) {
  std::vector<int64_t> rows;
  for (const StepSequence& sequence : step.sequences) rows.push_back(sequence.row_count);
  return rows;
}

// -- Batching
// ------------------------------------------------------------------------------------------------------------

TEST(Batcher, ChunksPromptsAndMixesThemWithDecoding) {
  BatcherHarness harness({.chunked_prefill_tokens = 16}, 100, 4);
  harness.add(request_of(1, 10, 8, 0));
  harness.add(request_of(2, 40, 8, 30));
  Step step = harness.step();
  EXPECT_THAT(rows_of(step), ElementsAre(10, 6)) << "several prompts in a step, the last one in part";
  EXPECT_EQ(step.mode, StepMode::kPrefill);
  EXPECT_THAT(step.logit_rows, ElementsAre(9)) << "a prompt in progress needs no logits";
  step = harness.step();
  EXPECT_THAT(rows_of(step), ElementsAre(1, 15));
  EXPECT_EQ(step.mode, StepMode::kMixed);
  EXPECT_EQ(step.sequences[1].first_position, 6);
  harness.step();
  step = harness.step();
  EXPECT_THAT(rows_of(step), ElementsAre(1, 4));
  EXPECT_EQ(step.logit_rows.size(), 2U);
  step = harness.step();
  EXPECT_EQ(step.mode, StepMode::kDecode);
  harness.run_until_idle();
  harness.check_all();
}

TEST(Batcher, NewRequestsJoinAtOnceAndOldOnesLeaveAtOnce) {
  BatcherHarness harness({.max_running_requests = 2}, 100, 4);
  harness.add(request_of(1, 4, 3, 0));
  harness.add(request_of(2, 4, 9, 20));
  harness.add(request_of(3, 4, 3, 40));
  EXPECT_EQ(harness.step().sequences.size(), 2U);
  harness.step();
  harness.step();
  EXPECT_TRUE(harness.heard[1].finish);
  EXPECT_THAT(rows_of(harness.step()), ElementsAre(1, 4)) << "the third takes the place of the first";
  harness.run_until_idle();
  harness.check_all();
}

TEST(Batcher, FirstComeFirstServed) {
  BatcherHarness harness({.max_running_requests = 1}, 100, 4);
  for (RequestId id = 1; id <= 4; ++id) {
    Request request = request_of(id, 4, 2, static_cast<int32_t>(id) * 9);
    request.priority = static_cast<int32_t>(id);
    harness.add(request);
  }
  harness.run_until_idle();
  EXPECT_LT(harness.heard[1].finished_at_step, harness.heard[2].finished_at_step);
  EXPECT_LT(harness.heard[3].finished_at_step, harness.heard[4].finished_at_step);
}

TEST(Batcher, PriorityOrdersTheQueueAndTiesGoByArrival) {
  BatcherHarness harness({.max_running_requests = 1, .policy = SchedulePolicy::kPriority}, 100, 4);
  const int32_t priorities[] = {0, 1, 5, 1, -3};
  for (RequestId id = 0; id < 5; ++id) {
    Request request = request_of(id, 4, 2, static_cast<int32_t>(id) * 9);
    request.priority = priorities[id];
    harness.add(request);
  }
  harness.run_until_idle();
  std::vector<RequestId> order(5);
  std::iota(order.begin(), order.end(), RequestId{0});
  std::sort(order.begin(), order.end(), [&](RequestId a, RequestId b) {
    return harness.heard[a].finished_at_step < harness.heard[b].finished_at_step;
  });
  EXPECT_THAT(order, ElementsAre(2, 1, 3, 0, 4));
  harness.check_all();
}

TEST(Batcher, UrgentArrivalsDoNotStarveARunningRequest) {
  BatcherHarness harness({.max_running_requests = 2, .policy = SchedulePolicy::kPriority}, 64, 4);
  Request humble = request_of(0, 8, 40, 3);
  humble.priority = -1;
  humble.sampling.ignore_eos = true;
  harness.add(humble);
  harness.step();
  for (RequestId id = 1; !harness.heard[0].finish; ++id) {
    ASSERT_LT(id, 200U);
    Request urgent = request_of(id, 8, 4, static_cast<int32_t>(id));
    urgent.priority = 9;
    harness.add(urgent);
    harness.step();
  }
  EXPECT_EQ(harness.steps, 40) << "one token in every step";
  harness.run_until_idle();
  harness.check_all();
}

// -- Memory
// --------------------------------------------------------------------------------------------------------------

TEST(Batcher, RefusesWhatCanNeverFit) {
  BatcherHarness harness({.context_tokens = 100}, 20, 4);
  const auto message = [&](int64_t prompt, int64_t output) {
    const Status status = harness.batcher.check(request_of(1, prompt, output));
    return status.has_error() ? status.error().message : "";
  };
  EXPECT_EQ(message(70, 10), "");
  EXPECT_EQ(message(80, 0), "");
  EXPECT_THAT(message(70, 11), HasSubstr("81 tokens; the KV pool holds 80"));
  EXPECT_THAT(message(1, 100), HasSubstr("the context length is 100"));
  EXPECT_THAT(message(0, 5), HasSubstr("no tokens"));
  Request request = request_of(1, 4, 4);
  request.logprob_start = 5;
  EXPECT_THAT(harness.batcher.check(request).error().message, HasSubstr("logprob_start is 5; it must be in [-1, 4]"));
}

TEST(Batcher, AGiantRequestRunsBetweenSmallOnes) {
  BatcherHarness harness({}, 20, 4);
  for (RequestId id = 1; id <= 30; ++id) harness.add(request_of(id, 6, 10, static_cast<int32_t>(id)));
  harness.add(request_of(99, 60, 20, 50));  // every page there is
  for (RequestId id = 100; id <= 130; ++id) harness.add(request_of(id, 6, 10, static_cast<int32_t>(id)));
  harness.run_until_idle();
  EXPECT_LT(harness.heard[99].finished_at_step, harness.heard[100].finished_at_step) << "nobody overtakes it";
  harness.check_all();
}

TEST(Batcher, RetractsTheYoungestAndResumesIt) {
  // Each needs 16 pages in the end; the pool has 20.
  BatcherHarness harness({.conservativeness = 0}, 20, 2);
  for (RequestId id = 0; id < 3; ++id) {
    Request request = request_of(id, 2, 30, static_cast<int32_t>(id) * 30);
    request.sampling.ignore_eos = true;
    harness.add(request);
  }
  harness.run_until_idle();
  EXPECT_GT(harness.batcher.load().retractions, 0U);
  EXPECT_EQ(harness.heard[0].finished_at_step, 30) << "the first in precedence is never delayed";
  EXPECT_LT(harness.heard[1].finished_at_step, harness.heard[2].finished_at_step);
  harness.check_all();
}

TEST(Batcher, PriorityDecidesWhoIsRetracted) {
  BatcherHarness harness({.policy = SchedulePolicy::kPriority, .conservativeness = 0}, 20, 2);
  for (RequestId id = 0; id < 3; ++id) {
    Request request = request_of(id, 2, 30, static_cast<int32_t>(id) * 30);
    request.priority = static_cast<int32_t>(id);  // the youngest is the most urgent
    harness.add(request);
  }
  harness.run_until_idle();
  EXPECT_EQ(harness.heard[2].finished_at_step, 30);
  EXPECT_GT(harness.batcher.load().retractions, 0U);
  harness.check_all();
}

TEST(Batcher, ARetractedRequestFindsItsRowsAgain) {
  BatcherHarness harness({.conservativeness = 0}, 16, 2);
  harness.add(request_of(0, 8, 12, 0));   // 10 pages in the end
  harness.add(request_of(1, 8, 12, 30));  // likewise: they collide when both have 16 tokens
  while (harness.batcher.load().retractions == 0) harness.step();
  EXPECT_EQ(harness.batcher.load().kv_evictable_tokens, 16 - 2) << "less the page that the older one took";
  harness.run_until_idle();
  harness.check_all();
  const int64_t generated = 2 * 11;  // the last token of each is never computed
  EXPECT_LE(harness.model.rows_computed(), 16 + generated + 5) << "hardly anything twice";
}

TEST(Batcher, ARetractedRequestMayBeAbortedWhileItWaits) {
  BatcherHarness harness({.conservativeness = 0}, 16, 2);
  harness.add(request_of(0, 8, 12, 0));
  harness.add(request_of(1, 8, 12, 30));
  while (harness.batcher.load().retractions == 0) harness.step();
  EXPECT_EQ(harness.batcher.load().queued, 1);
  harness.batcher.abort(1, cancelled("client left"));
  harness.batcher.check_invariants();
  harness.run_until_idle();
  EXPECT_EQ(harness.heard[1].finish->kind, FinishKind::kAbort);
  harness.check_all();
}

TEST(Batcher, ManyRequestsInATinyPoolAllFinish) {  // a retraction loop, if there were one
  for (const bool radix : {true, false}) {
    for (const auto policy : {SchedulePolicy::kFirstCome, SchedulePolicy::kPriority}) {
      BatcherHarness harness({.radix_cache = radix, .policy = policy, .conservativeness = 0}, 12, 2);
      for (RequestId id = 0; id < 40; ++id) {
        Request request = request_of(id, 1 + static_cast<int64_t>(id % 5), 18, static_cast<int32_t>(id * 7));
        request.priority = static_cast<int32_t>(id % 3);
        harness.add(request);
      }
      harness.run_until_idle(20'000);
      harness.check_all();
    }
  }
}

// -- Prefix cache
// ----------------------------------------------------------------------------------------------------------

TEST(Batcher, ARepeatedPromptComputesOneTokenOrMore) {
  BatcherHarness harness({}, 100, 4);
  harness.add(request_of(1, 16, 2));
  harness.run_until_idle();
  EXPECT_EQ(harness.heard[1].cached_tokens, 0);
  harness.add(request_of(2, 16, 2));
  EXPECT_THAT(rows_of(harness.step()), ElementsAre(4)) << "15 tokens may be reused: three whole pages";
  harness.run_until_idle();
  EXPECT_EQ(harness.heard[2].cached_tokens, 12);
  harness.add(request_of(3, 17, 2));
  EXPECT_THAT(rows_of(harness.step()), ElementsAre(1));
  harness.run_until_idle();
  EXPECT_EQ(harness.heard[3].cached_tokens, 16);
  harness.check_all();
  EXPECT_EQ(harness.batcher.load().cached_prompt_tokens, 28U);
}

TEST(Batcher, ABurstWithOnePrefixComputesItOnce) {
  BatcherHarness harness({.chunked_prefill_tokens = 32}, 200, 4);
  for (RequestId id = 0; id < 16; ++id) {
    Request request = request_of(id, 64, 3);
    request.prompt_ids.push_back(static_cast<int32_t>(id));
    harness.add(request);
  }
  harness.run_until_idle();
  EXPECT_EQ(harness.model.rows_computed(), 65 + 15 * 1 + 16 * 2);
  harness.check_all();
}

TEST(Batcher, WithoutTheCacheEverythingIsComputed) {
  BatcherHarness harness({.radix_cache = false}, 100, 4);
  for (RequestId id = 0; id < 3; ++id) {
    harness.add(request_of(id, 16, 2));
    harness.run_until_idle();
    EXPECT_EQ(harness.heard[id].cached_tokens, 0);
    EXPECT_EQ(harness.batcher.load().kv_evictable_tokens, 0);
  }
  harness.check_all();
}

TEST(Batcher, CachedPagesGiveWayToRequests) {
  BatcherHarness harness({}, 10, 4);
  for (RequestId id = 0; id < 20; ++id) {
    harness.add(request_of(id, 30, 10, static_cast<int32_t>(id) * 31));
    harness.run_until_idle();
  }
  harness.check_all();
}

TEST(Batcher, OnlyPromptRowsStayAfterTheEnd) {
  BatcherHarness harness({}, 100, 4);
  Request request = request_of(1, 8, 20);
  request.sampling.ignore_eos = true;
  harness.add(request);
  harness.run_until_idle();
  EXPECT_EQ(harness.batcher.load().kv_evictable_tokens, 8);
}

// -- Ends
// ------------------------------------------------------------------------------------------------------------------

TEST(Batcher, PromptOnly) {
  BatcherHarness harness({.prompt_logprob_rows = 3}, 100, 4);
  harness.add(request_of(1, 9, 0));
  Request with_logprobs = request_of(2, 9, 0, 40);
  with_logprobs.return_logprob = true;
  with_logprobs.logprob_start = 0;
  with_logprobs.top_logprobs = 2;
  harness.add(with_logprobs);
  harness.run_until_idle();
  EXPECT_EQ(harness.heard[1].finish->kind, FinishKind::kLength);
  EXPECT_TRUE(harness.heard[1].tokens.empty());
  ASSERT_EQ(harness.heard[2].prompt_logprobs.size(), 9U);
  EXPECT_FALSE(harness.heard[2].prompt_logprobs[0].logprob);
  EXPECT_TRUE(harness.heard[2].prompt_logprobs[1].logprob);
  harness.check_all();
}

TEST(Batcher, PromptLogprobsAreRecomputedInSpiteOfTheCache) {
  BatcherHarness harness({.chunked_prefill_tokens = 8, .prompt_logprob_rows = 4}, 100, 4);
  harness.add(request_of(1, 24, 2));
  harness.run_until_idle();
  Request request = request_of(2, 24, 2);
  request.return_logprob = true;
  request.logprob_start = 10;
  harness.add(request);
  harness.run_until_idle();
  EXPECT_EQ(harness.heard[2].cached_tokens, 8) << "row 9 gives the logprob of token 10";
  EXPECT_EQ(harness.heard[2].prompt_logprobs.size(), 14U);
  harness.check_all();
}

TEST(Batcher, AResumedRequestGoesOnExactly) {
  Request request = request_of(1, 10, 20);
  const ExpectedRun whole = expected_run(request);
  for (size_t delivered = 1; delivered <= whole.tokens.size(); ++delivered) {
    BatcherHarness harness({.chunked_prefill_tokens = 3}, 30, 2);
    Request resumed = request;
    for (size_t i = 0; i < delivered; ++i) resumed.output_ids.push_back(whole.tokens[i].id);
    harness.add(resumed);
    harness.run_until_idle();
    const auto& heard = harness.heard[1];
    ASSERT_EQ(heard.tokens.size(), whole.tokens.size() - delivered);
    for (size_t i = 0; i < heard.tokens.size(); ++i) ASSERT_EQ(heard.tokens[i].id, whole.tokens[delivered + i].id);
    ASSERT_EQ(heard.finish->kind, FinishKind::kLength);
  }
}

TEST(Batcher, AResumedRequestThatHadItsLastTokenOnlyHearsItsEnd) {
  BatcherHarness harness({}, 30, 2);
  Request request = request_of(1, 10, 20);
  request.output_ids = {5, 6};
  request.eos_token_ids = {6};
  harness.add(request);
  EXPECT_FALSE(harness.batcher.has_work());
  EXPECT_EQ(harness.heard[1].finish->kind, FinishKind::kStop);
  EXPECT_EQ(harness.heard[1].finish->matched_token, 6);
  EXPECT_EQ(harness.steps, 0);
}

TEST(Batcher, AbortFreesEverythingAtOnce) {
  BatcherHarness harness({.max_running_requests = 1, .radix_cache = false}, 100, 4);
  harness.add(request_of(1, 10, 20));
  harness.add(request_of(2, 10, 20));
  harness.step();
  EXPECT_GT(harness.batcher.load().kv_used_tokens, 0);
  harness.batcher.abort(1, cancelled("client left"));
  harness.batcher.abort(2, cancelled("client left"));
  harness.batcher.abort(2, cancelled("again"));
  harness.batcher.abort(77, cancelled("unknown"));
  EXPECT_EQ(harness.batcher.load().kv_used_tokens, 0);
  EXPECT_FALSE(harness.batcher.has_work());
  harness.step();
  EXPECT_EQ(harness.heard[1].finish->kind, FinishKind::kAbort);
  EXPECT_EQ(harness.heard[1].finish->message, "client left");
  EXPECT_EQ(harness.heard[2].finish->error, ErrorKind::kCancelled);
  EXPECT_EQ(harness.batcher.load().aborted, 2U);
}

TEST(Batcher, DeadlinesCountWaitingAndRunning) {
  BatcherHarness harness({.max_running_requests = 1}, 100, 4);
  const auto at = [](int64_t ms) { return Clock::time_point{std::chrono::milliseconds(ms)}; };
  for (RequestId id = 1; id <= 2; ++id) {
    Request request = request_of(id, 10, 50);
    request.time_limit = std::chrono::milliseconds(id == 1 ? 100 : 50);
    request.sampling.ignore_eos = true;
    harness.add(request, at(0));
  }
  harness.step();
  harness.batcher.expire(at(49));
  harness.step();
  EXPECT_FALSE(harness.heard[2].finish);
  harness.batcher.expire(at(50));
  harness.step();
  ASSERT_TRUE(harness.heard[2].finish);
  EXPECT_EQ(harness.heard[2].finish->error, ErrorKind::kDeadline);
  EXPECT_FALSE(harness.heard[1].finish);
  harness.batcher.expire(at(100));
  EXPECT_FALSE(harness.batcher.has_work());
  harness.step();
  EXPECT_THAT(harness.heard[1].finish->message, HasSubstr("100 ms passed after 3 of 50 tokens"));
}

TEST(Batcher, ARequestWithoutFiniteLogitsFailsAlone) {
  BatcherHarness harness({}, 100, 4);
  harness.model.is_not_finite = [](const SamplingRow& row) {
    return row.params != nullptr && row.params->seed == 2 && row.output_index == 3;
  };
  for (RequestId id = 1; id <= 3; ++id) {
    Request request = request_of(id, 10, 8, static_cast<int32_t>(id) * 20);
    harness.add(request);
  }
  harness.run_until_idle();
  EXPECT_EQ(harness.heard[2].finish->kind, FinishKind::kAbort);
  EXPECT_EQ(harness.heard[2].finish->error, ErrorKind::kInternal);
  EXPECT_THAT(harness.heard[2].finish->message, HasSubstr("output position 3"));
  EXPECT_EQ(harness.heard[2].tokens.size(), 3U);
  EXPECT_EQ(harness.heard[1].finish->kind, FinishKind::kLength);
  EXPECT_EQ(harness.heard[3].finish->kind, FinishKind::kLength);
  harness.add(request_of(4, 10, 2, 40));  // the prompt of 2
  harness.run_until_idle();
  EXPECT_EQ(harness.heard[4].cached_tokens, 0) << "rows that may be bad are not reused";
  harness.check_all();
}

TEST(Batcher, StopAndLengthOnTheSameTokenIsAStop) {
  Request request = request_of(1, 5, 1);
  request.sampling.stop_token_ids = {expected_run(request).tokens[0].id};
  BatcherHarness harness({}, 10, 4);
  harness.add(request);
  harness.run_until_idle();
  EXPECT_EQ(harness.heard[1].finish->kind, FinishKind::kStop);
  harness.check_all();
}

}  // namespace
}  // namespace plait
