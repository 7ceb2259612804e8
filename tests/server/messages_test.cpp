// The frames between front end and engine: what goes in comes out, and no sequence of bytes does harm.
#include "server/messages.h"

#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace plait {
namespace {

using ::testing::HasSubstr;

Frame only_frame(const Result<std::string>& encoded) {
  FrameSplitter splitter;
  splitter.append(encoded.value());
  auto frame = splitter.next();
  EXPECT_TRUE(frame.has_value() && frame->has_value());
  return std::move(**frame);
}

Request example_request() {
  Request request{.id = 7, .prompt_ids = {1, 2, 3}, .output_ids = {9, 8}};
  request.sampling = {.temperature = 0.5, .top_p = 0.25, .top_k = 3, .logit_bias = {{4, -1.5F}, {5, 2}}, .seed = ~0ULL};
  request.sampling.stop_token_ids = {11};
  request.sampling.ignore_eos = true;
  request.eos_token_ids = {1, 12};
  request.priority = -3;
  request.return_logprob = true;
  request.logprob_start = 2;
  request.top_logprobs = 5;
  request.logprob_ids = {0, 1};
  request.return_routed_experts = true;
  request.routed_experts_start = 5;
  request.time_limit = std::chrono::milliseconds(1500);
  return request;
}

OutputsMessage example_outputs() {
  OutputsMessage message;
  RequestOutput first{.id = 3};
  first.tokens.push_back({.id = 5, .logprob = -0.5F, .top = {{5, -0.5F}, {6, -1}}, .requested = {{0, -9}}});
  first.prompt_logprobs.push_back({.id = 1});
  first.prompt_logprobs.push_back({.id = 2, .logprob = -2.5F, .top = {{2, -2.5F}}, .requested = {}});
  first.cached_tokens = 16;
  first.routed_experts = {2, std::string("\0\1\2\3", 4)};
  RequestOutput second{.id = 4};
  second.finish = Finish{.kind = FinishKind::kAbort, .error = ErrorKind::kDeadline, .message = "too late"};
  RequestOutput third{.id = 5};
  third.finish = Finish{.kind = FinishKind::kStop, .matched_token = 1};
  message.outputs = {first, second, third};
  message.load = {.running = 2, .queued = 1, .steps = 77, .generation_rate = 12.5};
  return message;
}

TEST(Messages, RequestSurvivesTheWire) {
  const Request sent = example_request();
  const Frame frame = only_frame(encode(sent));
  EXPECT_EQ(frame.kind, FrameKind::kSubmit);
  const Request got = decode_submit(frame.payload).value();
  EXPECT_EQ(got.id, sent.id);
  EXPECT_EQ(got.prompt_ids, sent.prompt_ids);
  EXPECT_EQ(got.output_ids, sent.output_ids);
  EXPECT_EQ(got.sampling.temperature, sent.sampling.temperature);
  EXPECT_EQ(got.sampling.top_k, sent.sampling.top_k);
  EXPECT_EQ(got.sampling.logit_bias, sent.sampling.logit_bias);
  EXPECT_EQ(got.sampling.seed, sent.sampling.seed);
  EXPECT_EQ(got.sampling.stop_token_ids, sent.sampling.stop_token_ids);
  EXPECT_EQ(got.sampling.ignore_eos, sent.sampling.ignore_eos);
  EXPECT_EQ(got.eos_token_ids, sent.eos_token_ids);
  EXPECT_EQ(got.priority, sent.priority);
  EXPECT_EQ(got.logprob_start, sent.logprob_start);
  EXPECT_EQ(got.top_logprobs, sent.top_logprobs);
  EXPECT_EQ(got.logprob_ids, sent.logprob_ids);
  EXPECT_EQ(got.return_routed_experts, sent.return_routed_experts);
  EXPECT_EQ(got.routed_experts_start, sent.routed_experts_start);
  EXPECT_EQ(got.time_limit, sent.time_limit);
  EXPECT_EQ(encode(got).value(), encode(sent).value()) << "every field is on the wire";
}

TEST(Messages, OutputsSurviveTheWire) {
  const OutputsMessage sent = example_outputs();
  const OutputsMessage got = decode_outputs(only_frame(encode(sent)).payload).value();
  ASSERT_EQ(got.outputs.size(), 3U);
  EXPECT_EQ(got.outputs[0].tokens[0].top[1].id, 6);
  EXPECT_EQ(got.outputs[0].routed_experts.count, 2);
  EXPECT_EQ(got.outputs[0].routed_experts.ids, sent.outputs[0].routed_experts.ids);
  EXPECT_FALSE(got.outputs[0].prompt_logprobs[0].logprob.has_value());
  EXPECT_EQ(got.outputs[0].prompt_logprobs[1].logprob, -2.5F);
  EXPECT_EQ(got.outputs[1].finish->message, "too late");
  EXPECT_EQ(got.outputs[1].finish->error, ErrorKind::kDeadline);
  EXPECT_EQ(got.outputs[2].finish->matched_token, 1);
  EXPECT_EQ(got.load.steps, 77U);
  EXPECT_EQ(encode(got).value(), encode(sent).value());
}

TEST(Messages, OptionsSurviveTheWire) {
  EngineProcessOptions sent;
  sent.engine.model_path = "models/demo";
  sent.engine.config_overrides = {{"num_hidden_layers", 2}};
  sent.engine.mem_fraction_static = 0.25;
  sent.engine.kernel_cache_dir = "/var/cache/kernels";
  sent.engine.kernel_table = "none";
  sent.engine.deterministic_kernels = true;
  sent.engine.memory_bytes = size_t{5} << 30;
  sent.log_name = "engine 3";
  sent.scheduler.policy = SchedulePolicy::kPriority;
  sent.scheduler.radix_cache = false;
  const EngineProcessOptions got = decode_options(only_frame(encode(sent)).payload).value();
  EXPECT_EQ(got.engine.config_overrides, sent.engine.config_overrides);
  EXPECT_EQ(got.scheduler.policy, SchedulePolicy::kPriority);
  EXPECT_EQ(got.engine.memory_bytes, size_t{5} << 30);
  EXPECT_EQ(got.engine.kernel_cache_dir, sent.engine.kernel_cache_dir);
  EXPECT_EQ(got.engine.kernel_table, "none");
  EXPECT_TRUE(got.engine.deterministic_kernels);
  EXPECT_EQ(got.log_name, "engine 3");
  EXPECT_EQ(encode(got).value(), encode(sent).value());
}

TEST(Frames, ComeOutWholeHoweverTheStreamIsCut) {
  const std::string stream = encode(example_request()).value() + encode(example_outputs()).value() +
                             encode_shutdown().value() + encode(AbortMessage{5}).value();
  for (const size_t piece : {1, 2, 7, 16, 100, 100'000}) {
    FrameSplitter splitter;
    std::vector<FrameKind> kinds;
    for (size_t begin = 0; begin < stream.size(); begin += piece) {
      splitter.append(std::string_view(stream).substr(begin, piece));
      while (auto frame = splitter.next().value()) kinds.push_back(frame->kind);
    }
    EXPECT_EQ(kinds, (std::vector{FrameKind::kSubmit, FrameKind::kOutputs, FrameKind::kShutdown, FrameKind::kAbort}));
  }
}

TEST(Frames, RefusesWrongHeaders) {
  const std::string good = encode_shutdown().value();
  const auto refuse = [&](size_t byte, char value, const char* why) {
    std::string bad = good;
    bad[byte] = value;
    FrameSplitter splitter;
    splitter.append(bad);
    const auto frame = splitter.next();
    ASSERT_TRUE(frame.has_error());
    EXPECT_EQ(frame.error().kind, ErrorKind::kCorrupt);
    EXPECT_THAT(frame.error().message, HasSubstr(why));
  };
  refuse(0, 'X', "magic");
  refuse(4, 9, "version");
  refuse(6, 0, "kind");
  refuse(6, 99, "kind");
  refuse(15, 0x7f, "payload of");
}

TEST(Frames, RefusesCountsBeyondThePayload) {
  // A count of 2^61 four-byte numbers in an eight-byte payload: nothing may be allocated for it.
  FieldWriter writer(kFrameHeaderBytes);
  writer.number<uint64_t>(uint64_t{1} << 61);
  const Frame frame = only_frame(finish_frame(std::move(writer), FrameKind::kLoad));
  FieldReader reader(frame.payload);
  EXPECT_TRUE(reader.numbers<int32_t>().empty());
  EXPECT_TRUE(reader.status().has_error());
}

template <typename Decode>
void decode_anything(std::string payload, std::mt19937& random, Decode&& decode, int& cases, int& refused) {
  const auto attempt = [&](const std::string& bytes) {
    ++cases;
    refused += decode(bytes).has_error() ? 1 : 0;
  };
  for (size_t size = 0; size < payload.size(); ++size) attempt(payload.substr(0, size));
  attempt(payload + '\0');
  for (int i = 0; i < 3000; ++i) {
    std::string bytes = payload;
    for (int flips = 1 + static_cast<int>(random() % 3); flips > 0; --flips) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    attempt(bytes);
  }
}

TEST(Messages, NoBytesDoHarm) {
  std::mt19937 random(1);
  int cases = 0;
  int refused = 0;
  const auto try_all = [&](const Result<std::string>& encoded, auto&& decode) {
    decode_anything(only_frame(encoded).payload, random, decode, cases, refused);
  };
  try_all(encode(example_request()), [](const std::string& bytes) { return decode_submit(bytes); });
  try_all(encode(example_outputs()), [](const std::string& bytes) { return decode_outputs(bytes); });
  try_all(encode(EngineProcessOptions{}), [](const std::string& bytes) { return decode_options(bytes); });
  try_all(encode(EngineInfo{}), [](const std::string& bytes) { return decode_ready(bytes); });
  try_all(encode(ProgressMessage{{{.phase = StartPhase::kKernels, .item = "a"}, {.phase = StartPhase::kWeights}}}),
          [](const std::string& bytes) { return decode_progress(bytes); });
  try_all(encode(FailedMessage{ErrorKind::kIo, "x"}), [](const std::string& bytes) { return decode_failed(bytes); });
  try_all(encode(SchedulerLoad{}), [](const std::string& bytes) { return decode_load(bytes); });
  std::printf("tried %d broken payloads, %d refused, none did harm\n", cases, refused);
  EXPECT_GT(refused, cases / 10);
}

}  // namespace
}  // namespace plait
