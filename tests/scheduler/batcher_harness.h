// Drives a Batcher with the fake model, one step at a time, and checks everything after each.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "scheduler/batcher.h"
#include "tests/scheduler/fake_model.h"

namespace plait {

class BatcherHarness {
 public:
  struct Heard {  // of one request
    Request request;
    std::vector<OutputToken> tokens;
    std::vector<PromptLogprob> prompt_logprobs;
    std::optional<Finish> finish;
    int64_t cached_tokens = 0;
    int64_t finished_at_step = -1;
  };

  BatcherHarness(const SchedulerOptions& options, int64_t pages, int64_t page_tokens, RunAhead ahead = {})
      : options_(options),
        ahead_(ahead),
        model(pages, page_tokens, ahead),
        batcher(options, pages, page_tokens, /*routed_experts=*/nullptr, ahead) {}

  void add(Request request, Clock::time_point now = {}) {
    ASSERT_FALSE(batcher.check(request).has_error()) << batcher.check(request).error().message;
    heard[request.id].request = request;
    batcher.add(std::move(request), now);
    listen();
  }

  // One iteration, if there is work: launches a step, and takes the results of the oldest once as many as may be are
  // under way. Returns the step.
  Step step() {
    auto batch = std::make_unique<Batch>(batcher.plan());
    check_batch(*batch);
    batcher.check_invariants();
    listen();
    Step step = batch->step;
    const bool launches = step.rows() > 0;
    if (launches) {
      const StepCall call{&batch->step, batch->sampling_rows};
      model.launch({&call, 1});
      ran_ahead += !under_way_.empty();
      under_way_.push_back(std::move(batch));
    }
    if (!under_way_.empty() && (!launches || std::ssize(under_way_) >= ahead_.steps)) process_oldest();
    return step;
  }

  void process_oldest() {
    auto sampled = model.collect();
    batcher.process(*under_way_.front(), sampled.front());
    under_way_.pop_front();
    ++steps;
    batcher.check_invariants();
    const SchedulerLoad load = batcher.load();
    EXPECT_LE(load.kv_used_tokens + load.kv_evictable_tokens, load.kv_tokens);
    listen();
  }

  void run_until_idle(int64_t most_steps = 100'000) {
    for (int64_t i = 0; batcher.has_work() && i < most_steps; ++i) step();
    ASSERT_FALSE(batcher.has_work()) << "no end after " << most_steps << " steps";
  }

  // Everything heard is what the request alone would have got.
  void check_all() {
    while (!under_way_.empty()) process_oldest();
    for (const auto& [id, one] : heard) {
      ASSERT_TRUE(one.finish) << "request " << id << " was lost";
      const ExpectedRun expected = expected_run(one.request);
      ASSERT_EQ(difference(one.tokens, expected), "") << "request " << id;
      if (one.finish->kind == FinishKind::kAbort) continue;
      ASSERT_EQ(one.tokens.size(), expected.tokens.size()) << "request " << id;
      ASSERT_EQ(one.finish->kind, expected.finish) << "request " << id;
      ASSERT_EQ(difference(one.prompt_logprobs, expected), "") << "request " << id;
      if (expected.finish == FinishKind::kStop) {
        const int32_t last = one.tokens.empty() ? one.request.output_ids.back() : one.tokens.back().id;
        ASSERT_EQ(one.finish->matched_token, last);
      }
    }
    const SchedulerLoad load = batcher.load();
    EXPECT_EQ(load.kv_used_tokens, 0) << "all memory is free or evictable when nothing runs";
    batcher.clear_cache();
    batcher.check_invariants();
    EXPECT_EQ(batcher.load().kv_evictable_tokens, 0);
  }

 private:
  void check_batch(const Batch& batch) {
    const int64_t decode_rows = batch.step.rows() - batch.prefill_rows;
    EXPECT_LE(batch.step.rows(), std::max(options_.chunked_prefill_tokens, decode_rows + 1));
    EXPECT_LE(static_cast<int64_t>(batch.entries.size()), options_.max_running_requests);
    int64_t prompt_logit_rows = 0;
    for (const SamplingRow& row : batch.sampling_rows) prompt_logit_rows += row.params == nullptr ? 1 : 0;
    EXPECT_LE(prompt_logit_rows, options_.prompt_logprob_rows);
  }

  void listen() {
    for (RequestOutput& output : batcher.take_outputs()) {
      Heard& one = heard.at(output.id);
      EXPECT_FALSE(one.finish) << "request " << output.id << " was heard of after its end";
      EXPECT_TRUE(one.prompt_logprobs.empty() || output.prompt_logprobs.empty()) << "prompt logprobs came twice";
      one.tokens.insert(one.tokens.end(), output.tokens.begin(), output.tokens.end());
      if (!output.prompt_logprobs.empty()) one.prompt_logprobs = std::move(output.prompt_logprobs);
      one.cached_tokens = output.cached_tokens;
      EXPECT_LT(one.cached_tokens, static_cast<int64_t>(one.request.prompt_ids.size() + one.request.output_ids.size()))
          << "at least one token is recomputed";
      if (output.finish) {
        one.finish = std::move(output.finish);
        one.finished_at_step = steps;
      }
    }
  }

  const SchedulerOptions options_;
  const RunAhead ahead_;
  std::deque<std::unique_ptr<Batch>> under_way_;

 public:
  FakeModel model;
  Batcher batcher;
  std::map<RequestId, Heard> heard;
  int64_t steps = 0;
  int64_t ran_ahead = 0;  // steps that were launched while another was under way
};

}  // namespace plait
