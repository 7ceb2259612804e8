#include "engine/engine.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/log.h"
#include "tests/model/goldens.h"

namespace plait {
namespace {

EngineOptions demo_options(const std::string& model = "demo-fp8") {
  EngineOptions options;
  options.model_path = testing::golden_path(model).string();
  options.threads = 1;
  return options;
}

std::unique_ptr<Engine> create(const EngineOptions& options) {
  auto engine = Engine::create(options);
  EXPECT_TRUE(engine.has_value()) << engine.error().message;
  return std::move(engine).value();
}

Error create_error(const EngineOptions& options) {
  const auto engine = Engine::create(options);
  return engine.has_error() ? engine.error() : Error{};
}

std::vector<int32_t> greedy(Engine& engine, const std::vector<int32_t>& prompt, size_t count) {
  const SamplingParams params{.temperature = 0};
  const SamplingRow row{.params = &params};
  const auto prompt_tokens = static_cast<int64_t>(prompt.size());
  std::vector<int32_t> pages;
  for (int64_t i = 0; i * engine.page_tokens() < prompt_tokens + static_cast<int64_t>(count); ++i)
    pages.push_back(static_cast<int32_t>(engine.kv_pages() - 1 - i));
  std::vector<int32_t> input = prompt, output;
  int64_t cached = 0;
  while (output.size() < count) {
    StepBuilder builder(output.size());
    builder.add(input, cached, pages, prompt_tokens, 1);
    cached += static_cast<int64_t>(input.size());
    input = {engine.execute(std::move(builder).build(), {&row, 1}).front().id};
    output.push_back(input.front());
  }
  return output;
}

// A quarter of the pages on each of four ranks, and one of six layers whole.
TEST(Engine, DividedKvPagesTakeLessMemory) {
  EngineOptions options = demo_options("demo");
  options.max_total_tokens = 1 << 16;
  options.parallel = {.tp_size = 4, .attn_cp_size = 4, .enable_prefill_cp = true};
  const auto kv_bytes = [&](bool divided) {
    options.parallel.prefill_cp_kv_sharded = divided;
    const std::unique_ptr<Engine> engine = create(options);
    // The last pages of the pool, which are those that a wrong size would not have.
    EXPECT_EQ(greedy(*engine, {5, 6, 7, 8, 9, 10, 11}, 20).size(), 20u);
    EXPECT_EQ(engine->kv_pages(), 4096);
    return engine->memory_plan().kv_bytes;
  };
  EXPECT_EQ(kv_bytes(true) * 24, kv_bytes(false) * 10);
}

TEST(Engine, AnswersAsTheGoldensDo) {
  for (const char* name : {"demo", "demo-fp8"}) {
    EngineOptions options = demo_options(name);
    options.dtype = "float32";
    const auto begin = std::chrono::steady_clock::now();
    const std::unique_ptr<Engine> engine = create(options);
    const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - begin;
    fmt::print("[ engine   ] {} is ready after {:.0f} ms\n", name, elapsed.count());
    for (const testing::GoldenPrompt& prompt : testing::GoldenFolder::read(name).prompts)
      EXPECT_EQ(greedy(*engine, prompt.input_ids, prompt.greedy.size()), prompt.greedy);
  }
}

TEST(Engine, ExecutesIdleStepsAndStepsWithoutLogits) {
  const std::unique_ptr<Engine> engine = create(demo_options());
  EXPECT_TRUE(engine->execute(StepBuilder(0).build(), {}).empty());
  StepBuilder builder(1);
  const std::vector<int32_t> ids{1, 2, 3}, pages{0};
  builder.add(ids, 0, pages, 3, /*logit_count=*/0);
  EXPECT_TRUE(engine->execute(std::move(builder).build(), {}).empty());
}

TEST(Engine, PlansMemoryAsItIsUsed) {
  EngineOptions options = demo_options();
  options.max_total_tokens = 1000;
  options.page_tokens = 32;
  const std::unique_ptr<Engine> engine = create(options);
  const MemoryPlan& plan = engine->memory_plan();
  EXPECT_EQ(plan.kv_tokens, 1024);
  EXPECT_EQ(engine->kv_pages(), 32);
  EXPECT_EQ(plan.kv_bytes, 1024u * 6 * (128 + 16) * 2);
  EXPECT_EQ(plan.weight_bytes, engine->model().weight_bytes());
  EXPECT_EQ(engine->context_tokens(), 1024);  // not the model's 2048: no longer sequence fits
  EXPECT_NE(plan.to_string().find("1024 tokens in 32 pages of 32"), std::string::npos) << plan.to_string();
}

TEST(Engine, AnnouncesWeightsAsTheyWillBe) {
  for (const char* name : {"demo", "demo-fp8", "v2-lite"}) {
    const ModelConfig config = read_model_config(testing::golden_path(name)).value();
    const auto model = make_model(config, {}).value();
    model->weight_requests();
    const size_t announced = model->weight_bytes();
    const size_t held = create(demo_options(name))->memory_plan().weight_bytes;
    EXPECT_NEAR(static_cast<double>(announced) / static_cast<double>(held), 1, 0.05) << name;
  }
}

TEST(Engine, RunsDummyWeightsWithOverriddenConfig) {
  EngineOptions options = demo_options();
  options.dummy_weights = true;
  options.config_overrides = {{"num_hidden_layers", 2}};
  const std::unique_ptr<Engine> engine = create(options);
  EXPECT_EQ(engine->config().num_hidden_layers, 2);
  EXPECT_EQ(greedy(*engine, {5, 6, 7}, 4).size(), 4u);
}

TEST(Engine, ChoosesActivationsByTheCheckpoint) {
  const auto kv_dtype = [](const EngineOptions& options) {
    return create(options)->model().kv_spec().components.front().dtype;
  };
  EngineOptions options = demo_options();
  EXPECT_EQ(kv_dtype(options), DType::kBF16);
  options.dtype = "float32";
  EXPECT_EQ(kv_dtype(options), DType::kF32);
  options = demo_options("demo");
  options.config_overrides = {{"torch_dtype", "float32"}};
  EXPECT_EQ(kv_dtype(options), DType::kF32);
}

TEST(Engine, RefusesBadOptionsByName) {
  struct BadOption {
    std::function<void(EngineOptions&)> set;
    ErrorKind kind;
    const char* expected;
  };
  const BadOption bad_options[] = {
      {[](auto& o) { o.model_path = "/no/such/folder"; }, ErrorKind::kNotFound, "/no/such/folder"},
      {[](auto& o) { o.dtype = "int4"; }, ErrorKind::kInvalid, "--dtype int4"},
      {[](auto& o) { o.mem_fraction_static = 0; }, ErrorKind::kInvalid, "--mem-fraction-static"},
      {[](auto& o) { o.mem_fraction_static = 1.5; }, ErrorKind::kInvalid, "--mem-fraction-static"},
      {[](auto& o) { o.context_tokens = 4096; }, ErrorKind::kInvalid, "max_position_embeddings, 2048"},
      {[](auto& o) { o.page_tokens = 0; }, ErrorKind::kInvalid, "--page-size"},
      {[](auto& o) { o.max_running_requests = 0; }, ErrorKind::kInvalid, "--max-running-requests"},
      {[](auto& o) { o.chunked_prefill_tokens = 0; }, ErrorKind::kInvalid, "--chunked-prefill-size"},
      {[](auto& o) { o.mem_fraction_static = 1e-6; }, ErrorKind::kExhausted, "--mem-fraction-static"},
      {[](auto& o) {
         o.config_overrides = {{"hidden_size", 512}};
       },
       ErrorKind::kCorrupt, "embed_tokens"},
  };
  int tried = 0;
  for (const BadOption& bad : bad_options) {
    EngineOptions options = demo_options();
    bad.set(options);
    const Error error = create_error(options);
    EXPECT_EQ(error.kind, bad.kind) << error.message;
    EXPECT_NE(error.message.find(bad.expected), std::string::npos) << error.message;
    ++tried;
  }
  fmt::print("[ engine   ] {} bad options refused\n", tried);
}

}  // namespace
}  // namespace plait
