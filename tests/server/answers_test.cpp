// From the engine's outputs to what a client reads: text, stop strings, logprobs, usage, events.
#include <boost/json/parse.hpp>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/json_text.h"
#include "server/native_api.h"
#include "server/openai_chat.h"
#include "server/openai_completions.h"
#include "server/request_fields.h"

namespace plait {
namespace {

namespace bj = boost::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class Answers : public ::testing::Test {
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

  // As it is sent: long values at their places.
  static std::string sent_text(const AnswerText& answer) {
    std::string text;
    size_t begin = 0;
    for (const LongValue& value : answer.long_values) {
      text.append(answer.text, begin, value.at - begin);
      begin = value.at;
      for (const size_t end = text.size() + value.source->size(); text.size() < end;) value.source->append_piece(text);
    }
    return text.append(answer.text, begin);
  }

  // One sequence per parsed request sequence, and the format.
  struct Answer {
    std::unique_ptr<ResponseFormat> format;
    std::vector<std::unique_ptr<ClientSequence>> sequences;
    AnswerText events;

    void feed(size_t index, RequestOutput output) {
      sequences[index]->accept(std::move(output));
      format->stream_update(sequences, index, events);
    }
    std::string end() {
      format->stream_end(sequences, events);
      return sent_text(std::exchange(events, {}));
    }
    bj::value body() { return bj::parse(sent_text(format->body(sequences))); }
  };

  template <typename Parser>
  static Answer answer(Parser parser, std::string_view body) {
    GenerationRequest request = parser(*context_, bj::parse(body).as_object()).value();
    Answer result{.format = std::move(request.format)};
    for (SequenceRequest& sequence : request.sequences) {
      result.sequences.push_back(std::make_unique<ClientSequence>(std::move(sequence), tokenizer_));
      result.sequences.back()->accepted(result.sequences.size(), "drawn");
    }
    return result;
  }

  static std::vector<int32_t> ids(std::string_view text) { return tokenizer_->encode(text, false); }
  static RequestOutput tokens(const std::vector<int32_t>& ids) {
    RequestOutput output;
    for (const int32_t id : ids) output.tokens.push_back({.id = id, .logprob = -0.25F, .top = {{id, -0.25F}, {7, -2}}});
    return output;
  }
  static RequestOutput last(const std::vector<int32_t>& ids, FinishKind kind, std::optional<int32_t> match = {}) {
    RequestOutput output = tokens(ids);
    output.finish = Finish{.kind = kind, .matched_token = match};
    return output;
  }

  // The JSON objects of a stream of events.
  static std::vector<bj::value> events(const std::string& stream) {
    std::vector<bj::value> values;
    std::string_view rest = stream;
    while (!rest.empty()) {
      EXPECT_TRUE(rest.starts_with("data: "));
      const size_t end = rest.find("\n\n");
      values.push_back(bj::parse(rest.substr(6, end - 6)));
      rest.remove_prefix(end + 2);
    }
    return values;
  }

  static Tokenizer* tokenizer_;
  static ApiContext* context_;
};
Tokenizer* Answers::tokenizer_ = nullptr;
ApiContext* Answers::context_ = nullptr;

std::string text_of(const bj::value& value) {
  return std::string(value.as_string());
}

TEST_F(Answers, NativeBodyHasSglangsShape) {
  Answer native = answer(parse_generate, R"({"text": "hi", "return_logprob": true, "logprob_start_len": 0,
                                             "top_logprobs_num": 2, "return_text_in_logprobs": true, "rid": "me"})");
  RequestOutput first = tokens(ids("forty"));
  first.cached_tokens = 1;
  first.prompt_logprobs = {{.id = 0}, {.id = 5, .logprob = -1.5F, .top = {{5, -1.5F}}, .requested = {}}};
  native.feed(0, first);
  native.feed(0, last({tokenizer_->eos_id().value()}, FinishKind::kStop, tokenizer_->eos_id()));
  const bj::object body = native.body().as_object();
  EXPECT_EQ(text_of(body.at("text")), "forty") << "the end-of-sequence token is no text";
  EXPECT_EQ(body.at("output_ids").as_array().size(), ids("forty").size() + 1);
  const bj::object& meta = body.at("meta_info").as_object();
  EXPECT_EQ(text_of(meta.at("id")), "me");
  EXPECT_EQ(text_of(meta.at("finish_reason").at("type")), "stop");
  EXPECT_EQ(meta.at("finish_reason").at("matched").as_int64(), tokenizer_->eos_id().value());
  EXPECT_EQ(meta.at("completion_tokens").as_int64(), static_cast<int64_t>(ids("forty").size() + 1));
  EXPECT_EQ(meta.at("cached_tokens").as_int64(), 1);
  EXPECT_TRUE(meta.at("input_token_logprobs").at(0).at(0).is_null()) << "the first position has no logprob";
  EXPECT_EQ(meta.at("input_token_logprobs").at(1).at(1).as_int64(), 5);
  EXPECT_TRUE(meta.at("input_top_logprobs").at(0).is_null());
  EXPECT_TRUE(meta.at("output_token_logprobs").at(0).at(2).is_string());
  EXPECT_EQ(meta.at("output_top_logprobs").at(0).as_array().size(), 2U);
}

TEST_F(Answers, NativeStreamRepeatsOrIncrements) {
  const auto stream = [&](bool incremental) {
    context_->stream_output = incremental;
    Answer native = answer(parse_generate, R"({"text": "hi", "stream": true})");
    context_->stream_output = false;
    const auto all = ids("one two three");
    for (const int32_t id : all) native.feed(0, tokens({id}));
    native.feed(0, last({}, FinishKind::kLength));
    std::vector<std::string> texts;
    size_t id_count = 0;
    for (const bj::value& event : events(native.end())) {
      texts.push_back(text_of(event.at("text")));
      id_count =
          incremental ? id_count + event.at("output_ids").as_array().size() : event.at("output_ids").as_array().size();
    }
    EXPECT_EQ(id_count, all.size());
    return texts;
  };
  const auto cumulative = stream(false);
  EXPECT_EQ(cumulative.back(), "one two three");
  for (size_t i = 1; i < cumulative.size(); ++i) EXPECT_THAT(cumulative[i], ::testing::StartsWith(cumulative[i - 1]));
  std::string joined;
  for (const std::string& piece : stream(true)) joined += piece;
  EXPECT_EQ(joined, "one two three");
}

TEST_F(Answers, StopStringsEndASequenceAcrossTokens) {
  Answer chat = answer(parse_chat, R"({"messages": [{"role": "user", "content": "x"}], "stop": "two th"})");
  for (const int32_t id : ids("one two three four")) {
    chat.feed(0, tokens({id}));
    if (chat.sequences[0]->finish()) break;
  }
  const ClientSequence& sequence = *chat.sequences[0];
  ASSERT_TRUE(sequence.finish());
  EXPECT_TRUE(sequence.ended_before_engine()) << "the engine must be told";
  EXPECT_EQ(sequence.finish()->matched_text, "two th");
  const bj::value body = chat.body();
  EXPECT_EQ(text_of(body.at("choices").at(0).at("message").at("content")), "one ");
  EXPECT_EQ(text_of(body.at("choices").at(0).at("finish_reason")), "stop");
  EXPECT_EQ(text_of(body.at("choices").at(0).at("matched_stop")), "two th");
  EXPECT_LT(body.at("usage").at("completion_tokens").as_int64(),
            static_cast<int64_t>(ids("one two three four").size()));
}

TEST_F(Answers, TokensAfterAStopStringDoNotCount) {
  Answer native = answer(parse_generate, R"({"text": "hi", "sampling_params": {"stop": ["two"]}})");
  native.feed(0, last(ids("one two three four"), FinishKind::kLength));
  const bj::value body = native.body();
  EXPECT_EQ(text_of(body.at("text")), "one ");
  EXPECT_EQ(text_of(body.at("meta_info").at("finish_reason").at("matched")), "two");
  EXPECT_EQ(body.at("output_ids").as_array().size(), ids("one two").size());
}

TEST_F(Answers, ChatStreamHasRoleThenDeltasThenReasonThenUsage) {
  Answer chat = answer(parse_chat, R"({"messages": [{"role": "user", "content": "x"}], "stream": true, "n": 2,
                                       "stream_options": {"include_usage": true}})");
  chat.feed(0, tokens(ids("forty")));
  chat.feed(1, last(ids("two"), FinishKind::kLength));
  chat.feed(0, last(ids(" two"), FinishKind::kStop, 1));
  const auto stream = events(chat.end());
  std::map<int64_t, std::string> texts;
  std::map<int64_t, std::string> reasons;
  std::map<int64_t, int> roles;
  for (size_t i = 0; i + 1 < stream.size(); ++i) {
    EXPECT_TRUE(stream[i].at("usage").is_null());
    EXPECT_EQ(text_of(stream[i].at("object")), "chat.completion.chunk");
    const bj::value& choice = stream[i].at("choices").at(0);
    const int64_t index = choice.at("index").as_int64();
    const bj::object& delta = choice.at("delta").as_object();
    if (delta.contains("role")) {
      ++roles[index];
      EXPECT_TRUE(texts[index].empty()) << "the role comes first";
    }
    if (delta.contains("content")) texts[index] += text_of(delta.at("content"));
    if (!choice.at("finish_reason").is_null()) reasons[index] = text_of(choice.at("finish_reason"));
  }
  EXPECT_EQ(texts, (std::map<int64_t, std::string>{{0, "forty two"}, {1, "two"}}));
  EXPECT_EQ(reasons, (std::map<int64_t, std::string>{{0, "stop"}, {1, "length"}}));
  EXPECT_EQ(roles, (std::map<int64_t, int>{{0, 1}, {1, 1}}));
  const bj::value& usage = stream.back().at("usage");
  EXPECT_TRUE(stream.back().at("choices").as_array().empty());
  EXPECT_EQ(usage.at("prompt_tokens").as_int64(), static_cast<int64_t>(chat.sequences[0]->prompt_tokens()))
      << "one prompt, however many samples";
  EXPECT_EQ(usage.at("completion_tokens").as_int64(),
            static_cast<int64_t>(ids("forty").size() + ids(" two").size() + ids("two").size()));
}

TEST_F(Answers, ChatLogprobsCarryTokensAndBytes) {
  Answer chat = answer(parse_chat, R"({"messages": [{"role": "user", "content": "x"}], "logprobs": true,
                                       "top_logprobs": 2})");
  chat.feed(0, last(ids("ß"), FinishKind::kLength));
  const bj::value body = chat.body();
  const bj::array& content = body.at("choices").at(0).at("logprobs").at("content").as_array();
  std::string bytes;
  for (const bj::value& token : content) {
    for (const bj::value& byte : token.at("bytes").as_array()) bytes += static_cast<char>(byte.as_int64());
    EXPECT_EQ(token.at("top_logprobs").as_array().size(), 2U);
  }
  EXPECT_EQ(bytes, "ß") << "bytes are exact where a token is only a part of a character";
}

TEST_F(Answers, CompletionEchoesThePromptWithItsLogprobs) {
  Answer completion =
      answer(parse_completions, R"({"prompt": "one two", "echo": true, "logprobs": 1, "max_tokens": 0})");
  RequestOutput output = last({}, FinishKind::kLength);
  for (const int32_t id : tokenizer_->encode("one two", true))
    output.prompt_logprobs.push_back({.id = id, .logprob = -1});
  output.prompt_logprobs[0].logprob.reset();
  completion.feed(0, output);
  const bj::value choice = completion.body().at("choices").at(0);
  EXPECT_EQ(text_of(choice.at("text")), "one two");
  const bj::object& logprobs = choice.at("logprobs").as_object();
  const size_t count = output.prompt_logprobs.size();
  for (const char* list : {"tokens", "token_logprobs", "top_logprobs", "text_offset"}) {
    EXPECT_EQ(logprobs.at(list).as_array().size(), count) << list;
  }
  EXPECT_TRUE(logprobs.at("token_logprobs").at(0).is_null());
  EXPECT_EQ(logprobs.at("text_offset").at(1).as_int64(), 0) << "BOS is no text";
}

TEST_F(Answers, ImpossibleTokensHaveAFiniteLogprob) {
  std::string out;
  append_logprob(out, -std::numeric_limits<double>::infinity());
  out += ' ';
  append_logprob(out, std::nan(""));
  EXPECT_EQ(out, "-9999 -9999");
}

TEST_F(Answers, TextIsEscaped) {
  std::string out;
  append_quoted(out, std::string("a\"\\\n\r\t\x01\0ß", 9));
  EXPECT_EQ(out, "\"a\\\"\\\\\\n\\r\\t\\u0001\\u0000\xc3\"");
  EXPECT_EQ(bj::parse(R"("a\"\\\n\r\t\u0001\u0000")").as_string().size(), 8U);
}

TEST_F(Answers, WhatComesAfterTheEndIsIgnored) {
  Answer native = answer(parse_generate, R"({"text": "hi"})");
  native.feed(0, last(ids("one"), FinishKind::kLength));
  native.feed(0, tokens(ids("two")));
  EXPECT_EQ(text_of(native.body().at("text")), "one");
}

}  // namespace
}  // namespace plait
