// Request bodies of the three APIs: what they become, and what is refused with which words.
#include <random>

#include <boost/json/parse.hpp>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/native_api.h"
#include "server/openai_chat.h"
#include "server/openai_completions.h"
#include "server/request_fields.h"

namespace plait {
namespace {

using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

using Parser = ApiResult<GenerationRequest> (*)(const ApiContext&, const boost::json::object&);

class Requests : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    const std::filesystem::path folder = std::filesystem::path(PLAIT_SOURCE_DIR) / "models/demo";
    tokenizer_ = new Tokenizer(Tokenizer::load(folder).value());
    context_ = new ApiContext;
    context_->config = read_model_config(folder).value();
    context_->served_model_name = "demo";
    context_->tokenizer = tokenizer_;
    context_->chat_format = ChatFormat::kDeepseekV3;
    context_->context_tokens = 2048;
  }
  static void TearDownTestSuite() {
    delete context_;
    delete tokenizer_;
  }

  static ApiResult<GenerationRequest> parse(Parser parser, std::string_view body) {
    PLAIT_ASSIGN_OR_RETURN(const boost::json::object object, parse_json_body(body));
    return parser(*context_, object);
  }
  static GenerationRequest generate(std::string_view body) { return parse(parse_generate, body).value(); }
  static GenerationRequest complete(std::string_view body) { return parse(parse_completions, body).value(); }
  static GenerationRequest chat(std::string_view body) { return parse(parse_chat, body).value(); }

  static Tokenizer* tokenizer_;
  static ApiContext* context_;
};
Tokenizer* Requests::tokenizer_ = nullptr;
ApiContext* Requests::context_ = nullptr;

TEST_F(Requests, GenerateHasSglangsDefaults) {
  const GenerationRequest request = generate(R"({"input_ids": [5, 6]})");
  ASSERT_THAT(request.sequences, SizeIs(1));
  const Request& one = request.sequences[0].request;
  EXPECT_THAT(one.prompt_ids, ElementsAre(5, 6));
  EXPECT_EQ(one.sampling.max_new_tokens, 128);
  EXPECT_EQ(one.sampling.temperature, 1) << "generation_config.json is not consulted on /generate";
  EXPECT_EQ(one.eos_token_ids, context_->config.eos_token_ids);
  EXPECT_FALSE(request.stream);
  EXPECT_FALSE(one.return_logprob);
}

TEST_F(Requests, GenerateReadsEveryField) {
  const GenerationRequest request = generate(R"({"text": "hello", "rid": "r", "stream": true, "priority": -4,
      "return_logprob": true, "logprob_start_len": 0, "top_logprobs_num": 3, "token_ids_logprob": [7, 8],
      "sampling_params": {"max_new_tokens": 9, "temperature": 0, "top_p": 0.5, "top_k": 4, "min_p": 0.1,
        "frequency_penalty": 1, "presence_penalty": -1, "repetition_penalty": 1.5, "min_new_tokens": 2, "stop": "x",
        "stop_token_ids": [3], "ignore_eos": true, "skip_special_tokens": false, "no_stop_trim": true,
        "sampling_seed": -1, "logit_bias": {"5": -100, "6": 2.5}}})");
  ASSERT_THAT(request.sequences, SizeIs(1));
  EXPECT_TRUE(request.stream);
  const SequenceRequest& sequence = request.sequences[0];
  const Request& one = sequence.request;
  EXPECT_EQ(one.prompt_ids, tokenizer_->encode("hello", true));
  EXPECT_EQ(sequence.rid, "r");
  EXPECT_EQ(one.priority, -4);
  EXPECT_EQ(one.logprob_start, 0);
  EXPECT_EQ(one.top_logprobs, 3);
  EXPECT_THAT(one.logprob_ids, ElementsAre(7, 8));
  EXPECT_EQ(one.sampling.max_new_tokens, 9);
  EXPECT_EQ(one.sampling.top_k, 4);
  EXPECT_EQ(one.sampling.repetition_penalty, 1.5);
  EXPECT_EQ(one.sampling.min_new_tokens, 2);
  EXPECT_EQ(one.sampling.seed, ~0ULL);
  EXPECT_THAT(one.sampling.stop_token_ids, ElementsAre(3));
  EXPECT_THAT(one.sampling.logit_bias, ElementsAre(std::pair(5, -100.0F), std::pair(6, 2.5F)));
  EXPECT_THAT(sequence.stop, ElementsAre("x"));
  EXPECT_TRUE(sequence.no_stop_trim);
  EXPECT_FALSE(sequence.skip_special_tokens);
}

TEST_F(Requests, BatchesTakeOneValueForAllOrOneForEach) {
  const GenerationRequest request = generate(R"({"input_ids": [[5], [6, 7]], "rid": ["a", "b"],
      "return_logprob": [true, false], "top_logprobs_num": 2, "token_ids_logprob": [[1], [2, 3]],
      "sampling_params": [{"n": 2, "sampling_seed": 9}, {"max_new_tokens": 3}]})");
  ASSERT_THAT(request.sequences, SizeIs(3));
  EXPECT_EQ(request.sequences[0].rid, "a_0");
  EXPECT_EQ(request.sequences[1].rid, "a_1");
  EXPECT_EQ(request.sequences[2].rid, "b");
  EXPECT_EQ(request.sequences[0].request.sampling.seed, 9U);
  EXPECT_NE(request.sequences[1].request.sampling.seed, 9U) << "samples differ";
  EXPECT_EQ(request.sequences[1].prompt_index, 0U);
  EXPECT_EQ(request.sequences[2].prompt_index, 1U);
  EXPECT_THAT(request.sequences[0].request.logprob_ids, ElementsAre(1));
  EXPECT_EQ(request.sequences[0].request.top_logprobs, 2);
  EXPECT_FALSE(request.sequences[2].request.return_logprob);
  EXPECT_EQ(request.sequences[2].request.sampling.max_new_tokens, 3);
}

TEST_F(Requests, OpenAiRoutesTakeTheCheckpointsSamplingDefaults) {
  const SamplingParams params = complete(R"({"prompt": "a"})").sequences[0].request.sampling;
  EXPECT_EQ(params.temperature, 0.6) << "generation_config.json";
  EXPECT_EQ(params.top_p, 0.95);
  EXPECT_EQ(params.max_new_tokens, 16) << "OpenAI's default";
  EXPECT_EQ(complete(R"({"prompt": "a", "temperature": 1.5})").sequences[0].request.sampling.temperature, 1.5);
}

TEST_F(Requests, ChatMayUseTheRestOfTheContext) {
  const GenerationRequest request = chat(R"({"messages": [{"role": "user", "content": "hi"}]})");
  const Request& one = request.sequences[0].request;
  EXPECT_EQ(one.sampling.max_new_tokens, 2048 - static_cast<int64_t>(one.prompt_ids.size()));
  EXPECT_EQ(chat(R"({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "max_completion_tokens": 5})")
                .sequences[0]
                .request.sampling.max_new_tokens,
            5);
}

TEST_F(Requests, ChatContentMayComeInParts) {
  const auto prompt = [](std::string_view body) { return chat(body).sequences[0].request.prompt_ids; };
  EXPECT_EQ(prompt(R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "What "},
                                                                  {"type": "text", "text": "is 2?"}]}]})"),
            prompt(R"({"messages": [{"role": "user", "content": "What is 2?"}]})"));
}

TEST_F(Requests, CompletionPromptsComeInFourForms) {
  EXPECT_THAT(complete(R"({"prompt": "a"})").sequences, SizeIs(1));
  EXPECT_THAT(complete(R"({"prompt": ["a", "b"], "n": 2})").sequences, SizeIs(4));
  EXPECT_THAT(complete(R"({"prompt": [4, 5]})").sequences[0].request.prompt_ids, ElementsAre(4, 5));
  EXPECT_THAT(complete(R"({"prompt": [[4, 5], [6]]})").sequences[1].request.prompt_ids, ElementsAre(6));
}

TEST_F(Requests, UnknownFieldsAndNullsAreIgnored) {
  EXPECT_THAT(complete(R"({"prompt": "a", "suffix": null, "user": "x", "something_new": [1], "logit_bias": null,
                           "stop": null, "seed": null, "max_tokens": null, "stream_options": null})")
                  .sequences,
              SizeIs(1));
}

TEST_F(Requests, SeedsAreDrawnWhereNoneIsGiven) {
  const auto seed = [] { return generate(R"({"input_ids": [5]})").sequences[0].request.sampling.seed; };
  EXPECT_NE(seed(), seed());
}

TEST_F(Requests, PromptAndOutputMustFitTheContext) {
  std::string ids = "1";
  for (int i = 1; i < 2048; ++i) ids += ",1";
  const auto full = parse(parse_generate, R"({"input_ids": [)" + ids + "]}");
  ASSERT_TRUE(full.has_error());
  EXPECT_EQ(full.error().code, "context_length_exceeded");
  EXPECT_FALSE(
      parse(parse_generate, R"({"sampling_params": {"max_new_tokens": 0}, "input_ids": [)" + ids + "]}").has_error())
      << "a prompt of the whole context may be scored";
  const auto almost = parse(parse_generate, R"({"input_ids": [)" + ids.substr(2) + "]}");
  ASSERT_FALSE(almost.has_error());
  EXPECT_EQ(almost->sequences[0].request.sampling.max_new_tokens, 1) << "the default is cut to what fits";
  EXPECT_TRUE(
      parse(parse_generate, R"({"sampling_params": {"max_new_tokens": 2}, "input_ids": [)" + ids.substr(2) + "]}")
          .has_error())
      << "what was asked for is not";
}

struct Refusal {
  Parser parser;
  const char* body;
  const char* message;  // a part of it
  const char* param;
  int status = 400;
};

TEST_F(Requests, RefusalsSayWhatIsWrong) {
  const Refusal cases[] = {
      {parse_generate, "", "not a JSON object", ""},
      {parse_generate, "[]", "not a JSON object", ""},
      {parse_generate, R"({"input_ids": [1]} x)", "not a JSON object", ""},
      {parse_generate, R"({"input_ids": [NaN]})", "not a JSON object", ""},
      {parse_generate, "{}", "Exactly one of text and input_ids", "text"},
      {parse_generate, R"({"text": "a", "input_ids": [1]})", "Exactly one", "text"},
      {parse_generate, R"({"text": 5})", "text must be a string", "text"},
      {parse_generate, R"({"text": ["a", 5]})", "text must be a string", "text"},
      {parse_generate, R"({"text": []})", "text is empty", "text"},
      {parse_generate, R"({"input_ids": []})", "input_ids is empty", "input_ids"},
      {parse_generate, R"({"input_ids": [[]]})", "The prompt is empty", "prompt"},
      {parse_generate, R"({"input_ids": [-1]})", "input_ids[0] must be a token id from 0 to", "input_ids"},
      {parse_generate, R"({"input_ids": [1, 100000000]})", "input_ids[1] must be a token id", "input_ids"},
      {parse_generate, R"({"input_ids": [1, "2"]})", "input_ids[1] must be a token id", "input_ids"},
      {parse_generate, R"({"input_ids": [1.5]})", "input_ids[0] must be a token id", "input_ids"},
      {parse_generate, R"({"input_ids": [[1], 2]})", "input_ids must be", "input_ids"},
      {parse_generate, R"({"input_ids": [1], "stream": "yes"})", "stream must be", "stream"},
      {parse_generate, R"({"input_ids": [1], "sampling_params": 3})", "sampling_params must be", "sampling_params"},
      {parse_generate, R"({"input_ids": [1], "sampling_params": {"temperature": -1}})",
       "sampling_params.temperature must be a number of at least 0", "sampling_params.temperature"},
      {parse_generate, R"({"input_ids": [1], "sampling_params": {"temperature": 1e999}})", "temperature must be",
       nullptr},
      {parse_generate, R"({"input_ids": [1], "sampling_params": {"top_p": 0}})", "top_p must be a number above 0",
       nullptr},
      {parse_generate, R"({"input_ids": [1], "sampling_params": {"top_k": 0}})", "top_k must be -1", nullptr},
      {parse_generate, R"({"input_ids": [1], "sampling_params": {"top_k": -2}})", "top_k must be", nullptr},
      {parse_generate, R"({"input_ids": [1], "sampling_params": {"max_new_tokens": -1}})", "max_new_tokens must be",
       nullptr},
      {parse_generate, R"({"input_ids": [1], "sampling_params": {"max_new_tokens": 9223372036854775808}})",
       "max_new_tokens must be", nullptr},
      {parse_generate, R"({"input_ids": [1], "sampling_params": {"max_new_tokens": 9223372036854775807}})",
       "exceed this server's limit", "max_tokens"},
      {parse_generate, R"({"input_ids": [1], "sampling_params": {"n": 1000000000}})", "n must be an integer from 1",
       nullptr},
      {parse_generate, R"({"input_ids": [1], "sampling_params": {"n": 0}})", "n must be an integer from 1", nullptr},
      {parse_generate, R"({"input_ids": [1], "sampling_params": {"stop": ""}})", "empty string", nullptr},
      {parse_generate, R"({"input_ids": [1], "sampling_params": {"stop": [1]}})", "stop must be", nullptr},
      {parse_generate, R"({"input_ids": [1], "sampling_params": {"stop_token_ids": [-1]}})", "stop_token_ids[0]",
       nullptr},
      {parse_generate, R"({"input_ids": [1], "sampling_params": {"logit_bias": {"x": 1}}})", "logit_bias must map",
       nullptr},
      {parse_generate, R"({"input_ids": [1], "sampling_params": {"logit_bias": {"99999999": 1}}})",
       "logit_bias must map", nullptr},
      {parse_generate, R"({"input_ids": [1], "sampling_params": {"logit_bias": {"1": 101}}})", "logit_bias.1 must be",
       nullptr},
      {parse_generate, R"({"input_ids": [1], "sampling_params": {"min_new_tokens": 5, "max_new_tokens": 4}})",
       "least number of new tokens", "min_new_tokens"},
      {parse_generate, R"({"input_ids": [1], "sampling_params": {"json_schema": "{}"}})",
       "json_schema is not supported", nullptr},
      {parse_generate, R"({"input_ids": [1], "sampling_params": {"regex": "a*"}})", "regex is not supported", nullptr},
      {parse_generate, R"({"input_ids": [1], "lora_path": "x"})", "lora_path is not supported", "lora_path"},
      {parse_generate, R"({"input_ids": [1], "return_hidden_states": true})", "is not supported",
       "return_hidden_states"},
      {parse_generate, R"({"input_ids": [1], "image_data": ["x"]})", "is not supported", "image_data"},
      {parse_generate, R"({"input_ids": [1], "routed_dp_rank": 1})", "routed_dp_rank must be", "routed_dp_rank"},
      {parse_completions, R"({"prompt": "a", "routed_dp_rank": 1})", "routed_dp_rank must be", "routed_dp_rank"},
      {parse_chat, R"({"messages": [{"role": "user", "content": "a"}], "data_parallel_rank": -1})",
       "data_parallel_rank must be", "data_parallel_rank"},
      {parse_generate, R"({"input_ids": [1], "top_logprobs_num": 1000000})", "top_logprobs_num must be", nullptr},
      {parse_generate, R"({"input_ids": [1], "logprob_start_len": -2})", "logprob_start_len must be", nullptr},
      {parse_generate, R"({"input_ids": [1], "logprob_start_len": 2})", "logprob_start_len must be", nullptr},
      {parse_generate, R"({"input_ids": [[1], [2]], "rid": ["a"]})", "rid has 1 elements for 2 prompts", "rid"},
      {parse_generate, R"({"input_ids": [1], "rid": ["a"]})", "rid has 1 elements", "rid"},
      {parse_completions, R"({})", "prompt is missing", "prompt"},
      {parse_completions, R"({"prompt": []})", "prompt is empty", "prompt"},
      {parse_completions, R"({"prompt": [[]]})", "The prompt is empty", "prompt"},
      {parse_completions, R"({"prompt": ["a", 1]})", "prompt must be", "prompt"},
      {parse_completions, R"({"prompt": {"a": 1}})", "prompt must be", "prompt"},
      {parse_completions, R"({"prompt": "a", "model": "gpt"})", "'gpt' does not exist here", "model", 404},
      {parse_completions, R"({"prompt": "a", "model": 5})", "model must be", "model"},
      {parse_completions, R"({"prompt": "a", "temperature": 2.1})", "temperature must be", "temperature"},
      {parse_completions, R"({"prompt": "a", "logprobs": 21})", "logprobs must be", "logprobs"},
      {parse_completions, R"({"prompt": "a", "logprobs": true})", "logprobs must be", "logprobs"},
      {parse_completions, R"({"prompt": "a", "best_of": 2})", "best_of is only supported", "best_of"},
      {parse_completions, R"({"prompt": "a", "suffix": "b"})", "suffix is not supported", "suffix"},
      {parse_completions, R"({"prompt": "a", "stream_options": {"include_usage": true}})", "only allowed with stream",
       "stream_options"},
      {parse_completions, R"({"prompt": "a", "response_format": {"type": "json_object"}})", "not supported",
       "response_format"},
      {parse_chat, R"({})", "messages must be", "messages"},
      {parse_chat, R"({"messages": []})", "messages must be", "messages"},
      {parse_chat, R"({"messages": ["hi"]})", "messages[0] must be an object", "messages[0]"},
      {parse_chat, R"({"messages": [{"content": "hi"}]})", "messages[0].role must be one of", "messages[0].role"},
      {parse_chat, R"({"messages": [{"role": "root", "content": "hi"}]})", "messages[0].role", "messages[0].role"},
      {parse_chat, R"({"messages": [{"role": "user"}]})", "messages[0].content is missing", "messages[0].content"},
      {parse_chat, R"({"messages": [{"role": "user", "content": 5}]})", "messages[0].content must be",
       "messages[0].content"},
      {parse_chat, R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})",
       "messages[0].content[0].type", "messages[0].content[0].type"},
      {parse_chat, R"({"messages": [{"role": "user", "content": [{"type": "text"}]}]})", "text is missing",
       "messages[0].content[0].text"},
      {parse_chat, R"({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 5})", "needs logprobs",
       "top_logprobs"},
      {parse_chat, R"({"messages": [{"role": "user", "content": "a"}], "logprobs": true, "top_logprobs": 21})",
       "top_logprobs must be", "top_logprobs"},
      {parse_chat, R"({"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]})",
       "tools[0].function is missing", "tools[0].function"},
      {parse_chat, R"({"messages": [{"role": "user", "content": "a"}], "tools": [5]})", "tools[0] must be", "tools[0]"},
      {parse_chat, R"({"messages": [{"role": "user", "content": "a"}], "tool_choice": "required"})", "not supported",
       "tool_choice"},
      {parse_chat, R"({"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"thinking": 1}})",
       "thinking must be", "chat_template_kwargs.thinking"},
      {parse_chat, R"({"messages": [{"role": "user", "content": "a"}], "chat_template": "{{ x }}"})", "not supported",
       "chat_template"},
      {parse_chat, R"({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1000000})",
       "exceed this server's limit", "max_tokens"},
  };
  for (const Refusal& refusal : cases) {
    const auto result = parse(refusal.parser, refusal.body);
    ASSERT_TRUE(result.has_error()) << refusal.body;
    EXPECT_EQ(result.error().status, refusal.status) << refusal.body;
    EXPECT_THAT(result.error().message, HasSubstr(refusal.message)) << refusal.body;
    if (refusal.param != nullptr) {
      EXPECT_EQ(result.error().param, refusal.param) << refusal.body;
    }
    const boost::json::value shown = boost::json::parse(to_json(result.error()));
    EXPECT_THAT(shown.as_object().at("error").as_object(), SizeIs(4));
  }
  std::printf("tried %zu wrong requests\n", std::size(cases));
}

TEST_F(Requests, EveryNumberIsCheckedAtItsEdges) {
  const char* kFields[] = {"temperature",       "top_p",          "top_k",          "min_p", "frequency_penalty",
                           "presence_penalty",  "max_new_tokens", "min_new_tokens", "n",     "sampling_seed",
                           "repetition_penalty"};
  const char* kValues[] = {"-1",
                           "0",
                           "2147483648",
                           "9223372036854775808",
                           "-9223372036854775809",
                           "1e308",
                           "1e999",
                           "0.5",
                           "true",
                           "\"1\"",
                           "[1]",
                           "{}",
                           "1e-30",
                           "-0.0",
                           "[]",
                           "null"};
  int cases = 0;
  for (const char* field : kFields) {
    for (const char* value : kValues) {
      const std::string params = fmt::format(R"("{}": {})", field, value);
      const auto native = parse(parse_generate, R"({"input_ids": [1], "sampling_params": {)" + params + "}}");
      const auto openai = parse(parse_completions, R"({"prompt": [1], )" + params + "}");
      for (const auto* result : {&native, &openai}) {
        ++cases;
        if (result->has_error()) {
          EXPECT_THAT(result->error().status, AnyOf(400));
        } else {
          for (const SequenceRequest& sequence : (*result)->sequences) {
            EXPECT_FALSE(sequence.request.sampling.validate(context_->config.vocab_size).has_error()) << params;
          }
        }
      }
    }
  }
  std::printf("tried %d values at the edges of %zu fields\n", cases, std::size(kFields));
}

TEST_F(Requests, DepthAndSizesAreBounded) {
  const auto refused = [](Parser parser, const std::string& body) {
    const auto result = parse(parser, body);
    ASSERT_TRUE(result.has_error()) << body.substr(0, 100);
    EXPECT_EQ(result.error().status, 400);
  };
  for (const size_t depth : {65, 1000, 1'000'000}) {
    refused(parse_generate, R"({"input_ids": )" + std::string(depth, '[') + std::string(depth, ']') + "}");
    refused(parse_generate, std::string(depth, '{'));
  }
  std::string stops = R"("a")";
  for (int i = 0; i < 100; ++i) stops += R"(,"a")";
  refused(parse_generate, R"({"input_ids": [1], "sampling_params": {"stop": [)" + stops + "]}}");
  refused(parse_generate, R"({"input_ids": [1], "sampling_params": {"stop": ")" + std::string(5000, 'a') + R"("}})");
  std::string many = "[1]";
  for (int i = 0; i < 5000; ++i) many += ",[1]";
  refused(parse_generate, R"({"input_ids": [)" + many + "]}");
  refused(parse_generate, R"({"input_ids": [1], "rid": ")" + std::string(1000, 'a') + R"("})");
  // sizes that are small one by one and enormous together
  std::string prompts = "[1]";
  for (int i = 0; i < 1000; ++i) prompts += ",[1]";
  refused(parse_generate, R"({"sampling_params": {"n": 100}, "input_ids": [)" + prompts + "]}");
  refused(parse_generate, R"({"return_logprob": true, "top_logprobs_num": 128, "sampling_params": {"n": 100,
                              "max_new_tokens": 2000}, "input_ids": [1]})");
}

TEST_F(Requests, TextNeedsATokenizer) {
  ApiContext context = *context_;
  context.tokenizer = nullptr;
  const auto try_with = [&](Parser parser, std::string_view body) {
    return parser(context, boost::json::parse(body).as_object());
  };
  EXPECT_FALSE(try_with(parse_generate, R"({"input_ids": [1]})").has_error());
  for (const auto& result : {try_with(parse_generate, R"({"text": "a"})"),
                             try_with(parse_generate, R"({"input_ids": [1], "sampling_params": {"stop": "a"}})"),
                             try_with(parse_completions, R"({"prompt": [1]})"),
                             try_with(parse_chat, R"({"messages": [{"role": "user", "content": "a"}]})")}) {
    ASSERT_TRUE(result.has_error());
    EXPECT_THAT(result.error().message, HasSubstr("--skip-tokenizer-init"));
  }
}

}  // namespace
}  // namespace plait
