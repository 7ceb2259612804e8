// The scheduler over the real engine with the demo model: a request's tokens and their logprobs, to the last bit, are
// those that it gets alone, whatever runs beside it, however its prompt is cut, found in the cache or computed again;
// so are the experts that were chosen for all its tokens.
#include <deque>

#include <gtest/gtest.h>

#include "base/log.h"
#include "engine/engine.h"
#include "scheduler/batcher.h"
#include "tests/model/goldens.h"
#include "tests/support/effort.h"

namespace plait {
namespace {

std::unique_ptr<Engine> demo_engine(const std::string& dtype, int64_t page_tokens, int64_t kv_tokens,
                                    const ParallelConfig& parallel = {}) {
  log::initialise(log::Level::kWarning, "");
  EngineOptions options;
  options.model_path = testing::golden_path("demo-fp8").string();
  options.dtype = dtype;
  options.threads = 1;
  options.page_tokens = page_tokens;
  options.max_total_tokens = kv_tokens;
  options.keep_routed_experts = true;
  options.parallel = parallel;
  auto engine = Engine::create(options);
  EXPECT_TRUE(engine.has_value()) << engine.error().message;
  return std::move(engine).value();
}

// Prompts that share prefixes of several lengths; every third request is greedy.
std::vector<Request> requests() {
  const auto goldens = testing::GoldenFolder::read("demo-fp8").prompts;
  std::vector<Request> made;
  for (RequestId id = 0; id < 10; ++id) {
    Request request;
    request.id = id;
    const auto& prompt = goldens[id % goldens.size()].input_ids;
    const auto& other = goldens[(id / 3) % goldens.size()].input_ids;
    request.prompt_ids = prompt;
    request.prompt_ids.insert(request.prompt_ids.end(), other.begin(), other.end());
    request.sampling.temperature = id % 3 == 0 ? 0 : 0.8;
    request.sampling.top_p = 0.95;
    request.sampling.seed = id;
    request.sampling.max_new_tokens = 16;
    request.sampling.ignore_eos = true;
    request.return_logprob = true;
    request.logprob_start = id % 4 == 0 ? 0 : -1;
    request.return_routed_experts = id % 5 != 4;
    request.routed_experts_start = static_cast<int64_t>(id % 3) * 7;
    made.push_back(std::move(request));
  }
  return made;
}

using Outputs = std::map<RequestId, RequestOutput>;

RunAhead run_ahead_of(const Engine& engine) {
  return {.steps = engine.most_steps_under_way(), .future_tokens = engine.knows_future_tokens()};
}

// Steps that were launched while another was under way.
int64_t run(Engine& engine, Batcher& batcher, Outputs& outputs, int most_under_way = 1) {
  const std::vector<Request> sent = requests();
  std::deque<std::unique_ptr<Batch>> under_way;
  int64_t ahead = 0;
  while (batcher.has_work() || !under_way.empty()) {
    auto batch = std::make_unique<Batch>(batcher.plan());
    const bool launches = batch->step.rows() > 0;
    if (launches) {
      const StepCall call{&batch->step, batch->sampling_rows};
      engine.launch({&call, 1});
      ahead += !under_way.empty();
      under_way.push_back(std::move(batch));
      if (std::ssize(under_way) < most_under_way) continue;
    }
    auto sampled = engine.collect();
    batcher.process(*under_way.front(), sampled.front());
    under_way.pop_front();
    batcher.check_invariants();
    for (RequestOutput& news : batcher.take_outputs()) {
      RequestOutput& all = outputs[news.id];
      std::move(news.tokens.begin(), news.tokens.end(), std::back_inserter(all.tokens));
      if (!news.prompt_logprobs.empty()) all.prompt_logprobs = std::move(news.prompt_logprobs);
      all.routed_experts.count += news.routed_experts.count;
      all.routed_experts.ids += news.routed_experts.ids;
      // With a token come all rows before it.
      if (const Request& request = sent.at(news.id); request.return_routed_experts && !news.tokens.empty()) {
        EXPECT_EQ(all.routed_experts.count,
                  std::ssize(request.prompt_ids) + std::ssize(all.tokens) - 1 - request.routed_experts_start);
      }
      if (news.finish) all.finish = std::move(news.finish);
    }
  }
  return ahead;
}

void expect_equal(const Outputs& alone, const Outputs& crowded, const std::string& what) {
  for (const auto& [id, expected] : alone) {
    SCOPED_TRACE(what + ", request " + std::to_string(id));
    const RequestOutput& actual = crowded.at(id);
    ASSERT_EQ(actual.finish->kind, FinishKind::kLength) << actual.finish->message;
    ASSERT_EQ(actual.tokens.size(), expected.tokens.size());
    ASSERT_EQ(actual.routed_experts.count, expected.routed_experts.count);
    ASSERT_EQ(actual.routed_experts.ids, expected.routed_experts.ids);
    for (size_t i = 0; i < expected.tokens.size(); ++i) {
      ASSERT_EQ(actual.tokens[i].id, expected.tokens[i].id) << "token " << i;
      ASSERT_EQ(actual.tokens[i].logprob, expected.tokens[i].logprob) << "token " << i;
    }
    ASSERT_EQ(actual.prompt_logprobs.size(), expected.prompt_logprobs.size());
    for (size_t i = 0; i < expected.prompt_logprobs.size(); ++i)
      ASSERT_EQ(actual.prompt_logprobs[i].logprob, expected.prompt_logprobs[i].logprob) << "prompt position " << i;
  }
}

class EngineBatching : public ::testing::TestWithParam<const char*> {};

TEST_P(EngineBatching, TokensAreThoseOfTheRequestAlone) {
  Outputs alone;
  int64_t longest = 0;
  {
    const auto engine = demo_engine(GetParam(), 16, 2048);
    for (const Request& request : requests()) {
      Batcher batcher({.radix_cache = false}, engine->kv_pages(), engine->page_tokens(), engine->routed_experts(0));
      longest = std::max<int64_t>(longest, request.prompt_ids.size() + 16);
      batcher.add(Request(request), {});
      run(*engine, batcher, alone);
    }
  }
  const struct Crowd {
    const char* what;
    int64_t page_tokens, kv_tokens;
    SchedulerOptions options;
    size_t rounds;  // the second one finds prompts in the cache
  } crowds[] = {
      {"all at once", 16, 4096, {}, 2},
      {"chunks of 5", 16, 4096, {.chunked_prefill_tokens = 5}, 1},
      {"retractions", 4, longest + 40, {.chunked_prefill_tokens = 64, .conservativeness = 0}, 1},
      {"retractions, nothing cached", 4, longest + 40, {.radix_cache = false, .conservativeness = 0}, 1},
  };
  for (const auto& crowd : crowds) {
    const auto engine = demo_engine(GetParam(), crowd.page_tokens, crowd.kv_tokens);
    Batcher batcher(crowd.options, engine->kv_pages(), engine->page_tokens(), engine->routed_experts(0));
    for (size_t round = 0; round < crowd.rounds; ++round) {
      Outputs crowded;
      for (Request& request : requests()) batcher.add(std::move(request), {});
      run(*engine, batcher, crowded);
      expect_equal(alone, crowded, crowd.what);
    }
    int64_t expert_rows = 0;
    for (const auto& [id, output] : alone) expert_rows += output.routed_experts.count;
    const SchedulerLoad load = batcher.load();
    std::printf("%s, %s: %lu requests, %lu retractions, %lu of %lu prompt tokens from the cache, %ld rows of experts\n",
                GetParam(), crowd.what, crowd.rounds * requests().size(), load.retractions, load.cached_prompt_tokens,
                load.prompt_tokens, crowd.rounds * expert_rows);
  }
}

// Steps that are launched while others run, on one rank, two, and a pipeline of two stages.
TEST_P(EngineBatching, RunningAheadChangesNothing) {
  const ParallelConfig configs[] = {{}, {.tp_size = 2, .ep_size = 2}, {.pp_size = 2}, {.pp_size = 3}};
  for (size_t number = 0; number < std::size(configs); ++number) {
    const ParallelConfig& config = configs[number];
    Outputs plain;
    const auto engine = demo_engine(GetParam(), 4, 4096, config);
    Batcher batcher({}, engine->kv_pages(), engine->page_tokens(), engine->routed_experts(0));
    for (Request& request : requests()) batcher.add(std::move(request), {});
    run(*engine, batcher, plain);

    const SchedulerOptions options[] = {
        {}, {.chunked_prefill_tokens = 5}, {.chunked_prefill_tokens = 64, .radix_cache = false, .conservativeness = 0}};
    const int64_t kv_tokens[] = {4096, 4096, 180};
    for (size_t i = 0; i < std::size(options); ++i) {
      if (kSanitized && i != number % std::size(options)) continue;  // each once
      SCOPED_TRACE(to_flags(config) + ", case " + std::to_string(i));
      const auto other = demo_engine(GetParam(), 4, kv_tokens[i], config);
      const RunAhead ahead = run_ahead_of(*other);
      ASSERT_GT(ahead.steps, 1);
      Batcher running_ahead(options[i], other->kv_pages(), other->page_tokens(), other->routed_experts(0), ahead);
      Outputs outputs;
      for (Request& request : requests()) running_ahead.add(std::move(request), {});
      const int64_t launched_ahead = run(*other, running_ahead, outputs, ahead.steps);
      expect_equal(plain, outputs, "running ahead");
      EXPECT_GT(launched_ahead, 10);
      std::printf("%s, %s: %ld steps were launched while others ran, %lu retractions\n", GetParam(),
                  to_flags(config).c_str(), launched_ahead, running_ahead.load().retractions);
    }
  }
}

std::vector<const char*> activations() {
  if (kSanitized) return {"bfloat16"};
  return {"float32", "bfloat16"};
}
INSTANTIATE_TEST_SUITE_P(Activations, EngineBatching, ::testing::ValuesIn(activations()));

}  // namespace
}  // namespace plait
