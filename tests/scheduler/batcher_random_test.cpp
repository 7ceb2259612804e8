// Random workloads against the fake model: whatever is scheduled with whatever else, every request gets exactly the
// tokens that it gets alone.
#include <random>

#include "tests/scheduler/batcher_harness.h"
#include "tests/support/effort.h"

namespace plait {
namespace {

struct Totals {
  int64_t workloads = 0, requests = 0, steps = 0, tokens = 0, retractions = 0, hits = 0, aborted = 0, resumed = 0,
          mixed_steps = 0, ran_ahead = 0;
};

class RandomWorkload {
 public:
  explicit RandomWorkload(uint64_t seed) : random_(seed) {
    const int64_t page_tokens[] = {1, 2, 3, 4, 8, 16};
    const int64_t chunks[] = {1, 3, 16, 64, 2048};
    page_tokens_ = pick(page_tokens);
    pages_ = (24 + below(150)) / page_tokens_ + 1;
    options_.max_running_requests = 1 + below(10);
    options_.chunked_prefill_tokens = pick(chunks);
    options_.prompt_logprob_rows = 1 + below(20);
    options_.radix_cache = below(5) != 0;
    options_.policy = below(2) == 0 ? SchedulePolicy::kFirstCome : SchedulePolicy::kPriority;
    options_.conservativeness = below(3) == 0 ? 1 : 0;
    constexpr RunAhead kAhead[] = {{1, false}, {2, true}, {2, false}, {4, false}};
    ahead_ = kAhead[below(4)];
    for (auto& prompt : families_) {
      prompt.resize(static_cast<size_t>(4 + below(60)));
      for (int32_t& id : prompt) id = token();
    }
  }

  void run(Totals& totals) {
    BatcherHarness harness(options_, pages_, page_tokens_, ahead_);
    const int64_t requests = 3 + below(30);
    const int64_t gap = below(3) == 0 ? 1 : 1 + below(12);  // of arrivals, in steps
    RequestId next = 0;
    for (int64_t time = 0; next < static_cast<RequestId>(requests) || harness.batcher.has_work(); ++time) {
      ASSERT_LT(time, 200'000) << "no end";
      const Clock::time_point now{std::chrono::milliseconds(time)};
      while (next < static_cast<RequestId>(requests) && below(gap) == 0) harness.add(make_request(next++), now);
      if (next > 0 && below(25) == 0)
        harness.batcher.abort(static_cast<RequestId>(below(static_cast<int64_t>(next))), cancelled("gone"));
      harness.batcher.expire(now);
      harness.batcher.check_invariants();
      const Step step = harness.step();
      totals.mixed_steps += step.mode == StepMode::kMixed ? 1 : 0;
    }
    harness.check_all();
    const SchedulerLoad load = harness.batcher.load();
    ++totals.workloads;
    totals.requests += requests;
    totals.steps += harness.steps;
    totals.ran_ahead += harness.ran_ahead;
    totals.tokens += static_cast<int64_t>(load.generated_tokens);
    totals.retractions += static_cast<int64_t>(load.retractions);
    totals.hits += static_cast<int64_t>(load.cached_prompt_tokens);
    totals.aborted += static_cast<int64_t>(load.aborted);
    totals.resumed += resumed_;
  }

 private:
  int64_t below(int64_t limit) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(limit)); }
  int32_t token() { return static_cast<int32_t>(below(FakeModel::kVocab)); }
  template <size_t N>
  int64_t pick(const int64_t (&values)[N]) {
    return values[below(N)];
  }

  Request make_request(RequestId id) {
    Request request;
    request.id = id;
    const auto& family = families_[static_cast<size_t>(below(3))];
    const int64_t kept =
        below(4) == 0 ? static_cast<int64_t>(family.size()) : 1 + below(static_cast<int64_t>(family.size()));
    request.prompt_ids.assign(family.begin(), family.begin() + kept);
    for (int64_t tail = below(3) == 0 ? 0 : below(12); tail > 0; --tail) request.prompt_ids.push_back(token());
    const int64_t capacity = pages_ * page_tokens_;
    request.prompt_ids.resize(std::min(request.prompt_ids.size(), static_cast<size_t>(capacity)));
    const auto prompt = static_cast<int64_t>(request.prompt_ids.size());
    // Sometimes all that the pool has.
    const int64_t room = capacity - prompt;
    request.sampling.max_new_tokens = below(12) == 0 ? room : std::min(room, below(40));
    request.sampling.seed = random_();
    if (below(4) == 0) request.sampling.frequency_penalty = 0.5;
    if (below(6) == 0) request.sampling.repetition_penalty = 1.25;
    request.sampling.ignore_eos = below(3) == 0;
    for (int64_t i = below(3); i > 0; --i) request.eos_token_ids.push_back(token());
    if (below(4) == 0) request.sampling.stop_token_ids.push_back(token());
    request.sampling.min_new_tokens = below(4) == 0 ? std::min(request.sampling.max_new_tokens, below(10)) : 0;
    request.priority = static_cast<int32_t>(below(3));
    if (below(4) == 0) {
      request.return_logprob = true;
      request.logprob_start = below(2) == 0 ? -1 : below(prompt + 1);
      request.top_logprobs = static_cast<int32_t>(below(3));
      if (below(2) == 0) request.logprob_ids = {token(), token()};
    }
    if (below(10) == 0) request.time_limit = std::chrono::milliseconds(1 + below(100));
    if (below(6) == 0) resume(request);
    return request;
  }

  // As after a crash: some of its tokens were delivered before.
  void resume(Request& request) {
    const ExpectedRun expected = expected_run(request);
    if (expected.tokens.empty()) return;
    for (int64_t i = 1 + below(static_cast<int64_t>(expected.tokens.size())); i > 0; --i)
      request.output_ids.push_back(expected.tokens[request.output_ids.size()].id);
    ++resumed_;
  }

  std::mt19937_64 random_;
  SchedulerOptions options_;
  RunAhead ahead_;
  int64_t pages_ = 0, page_tokens_ = 0;
  std::array<std::vector<int32_t>, 3> families_;
  int64_t resumed_ = 0;
};

TEST(BatcherRandom, EveryRequestGetsWhatItGetsAlone) {
  constexpr uint64_t kWorkloads = repetitions(3000);
  Totals totals;
  for (uint64_t seed = 0; seed < kWorkloads && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RandomWorkload(seed).run(totals);
  }
  std::printf(
      "%ld workloads: %ld requests (%ld resumed, %ld aborted or expired), %ld steps (%ld mixed, %ld launched while "
      "another was under way), %ld tokens, %ld "
      "retractions, %ld prompt tokens from the prefix cache\n",
      totals.workloads, totals.requests, totals.resumed, totals.aborted, totals.steps, totals.mixed_steps,
      totals.ran_ahead, totals.tokens, totals.retractions, totals.hits);
  EXPECT_GT(totals.retractions, 100);
  EXPECT_GT(totals.hits, 1000);
  EXPECT_GT(totals.resumed, 100);
  EXPECT_GT(totals.ran_ahead, 1000);
}

}  // namespace
}  // namespace plait
