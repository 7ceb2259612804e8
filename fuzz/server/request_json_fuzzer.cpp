// Bodies of /generate, /v1/completions and /v1/chat/completions. What is accepted must be within every limit and must
// run: a format writes an answer for it that is JSON again.
#include <boost/json/parse.hpp>
#include <fmt/format.h>

#include "base/assert.h"
#include "server/native_api.h"
#include "server/openai_chat.h"
#include "server/openai_completions.h"
#include "server/request_fields.h"

namespace {

using plait::ApiContext;
using plait::GenerationRequest;

plait::Tokenizer small_tokenizer() {
  // bytes only: ids 0 to 255, and two special tokens
  std::string vocab;
  std::string written;
  for (int byte = 0; byte < 256; ++byte) {
    // the usual spelling of bytes in byte-level vocabularies
    static int next = 256;
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const int code = printable ? byte : next++;
    vocab += fmt::format("{}\"\\u{:04x}\": {}", byte == 0 ? "" : ",", code, byte);
  }
  const std::string json = R"({"added_tokens": [
      {"id": 256, "content": "<｜begin▁of▁sentence｜>", "special": true, "normalized": false, "lstrip": false,
       "rstrip": false, "single_word": false},
      {"id": 257, "content": "<｜end▁of▁sentence｜>", "special": true, "normalized": false, "lstrip": false,
       "rstrip": false, "single_word": false},
      {"id": 258, "content": "<｜User｜>", "special": true, "normalized": false, "lstrip": false, "rstrip": false,
       "single_word": false},
      {"id": 259, "content": "<｜Assistant｜>", "special": true, "normalized": false, "lstrip": false,
       "rstrip": false, "single_word": false}],
      "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
      "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
      "model": {"type": "BPE", "merges": [], "vocab": {)" +
                           vocab + "}}}";
  auto tokenizer = plait::Tokenizer::parse(json, R"({"bos_token": "<｜begin▁of▁sentence｜>",
                                                     "eos_token": "<｜end▁of▁sentence｜>"})");
  PLAIT_ASSERT(!tokenizer.has_error(), tokenizer.has_error() ? tokenizer.error().message : "");
  return std::move(tokenizer).value();
}

const ApiContext& context() {
  static const plait::Tokenizer tokenizer = small_tokenizer();
  static const ApiContext context = [] {
    ApiContext made;
    made.served_model_name = "m";
    made.tokenizer = &tokenizer;
    made.chat_format = plait::ChatFormat::kDeepseekV3;
    made.config.vocab_size = 260;
    made.config.eos_token_ids = {257};
    made.context_tokens = 512;
    // small, so that the fuzzer reaches them
    made.limits.samples = 4;
    made.limits.sequences = 8;
    made.limits.stop_strings = 3;
    made.limits.stop_string_bytes = 8;
    made.limits.tokens = 2048;
    made.limits.logprob_values = 4096;
    made.limits.routed_expert_bytes = 4096;
    made.routed_experts =
        plait::RoutedExpertShape{.layers = 3, .expert_layers = {1, 2}, .experts_per_token = 2, .id_bytes = 1};
    return made;
  }();
  return context;
}

void check(const plait::SequenceRequest& sequence) {
  const plait::Request& request = sequence.request;
  const ApiContext& limits = context();
  PLAIT_ASSERT(!request.sampling.validate(limits.config.vocab_size).has_error(), "parameters are in range");
  PLAIT_ASSERT(!request.prompt_ids.empty(), "there is a prompt");
  PLAIT_ASSERT(
      static_cast<int64_t>(request.prompt_ids.size()) + request.sampling.max_new_tokens <= limits.context_tokens,
      "it fits the context");
  for (const int32_t id : request.prompt_ids) PLAIT_ASSERT(id >= 0 && id < 260, "ids are in the vocabulary");
  for (const int32_t id : request.logprob_ids) PLAIT_ASSERT(id >= 0 && id < 260, "ids are in the vocabulary");
  PLAIT_ASSERT(sequence.stop.size() <= limits.limits.stop_strings, "the limits hold");
}

// As it is sent: long values at their places.
std::string whole(const plait::AnswerText& answer) {
  std::string text;
  size_t begin = 0;
  for (const plait::LongValue& value : answer.long_values) {
    text.append(answer.text, begin, value.at - begin);
    begin = value.at;
    const size_t end = text.size() + value.source->size();
    while (text.size() < end) value.source->append_piece(text);
    PLAIT_ASSERT(text.size() == end, "a value is as long as it said");
  }
  return text.append(answer.text, begin);
}

// Generates the request's own prompt, backwards.
void answer(GenerationRequest& generation) {
  std::vector<std::unique_ptr<plait::ClientSequence>> sequences;
  for (plait::SequenceRequest& sequence : generation.sequences) {
    sequences.push_back(std::make_unique<plait::ClientSequence>(std::move(sequence), context().tokenizer));
  }
  plait::AnswerText streamed;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const plait::Request& request = sequences[i]->request().request;
    const auto count =
        std::min<size_t>(request.prompt_ids.size(), static_cast<size_t>(request.sampling.max_new_tokens));
    for (size_t token = 0; token < count; ++token) {
      plait::RequestOutput output;
      output.tokens.push_back({.id = request.prompt_ids[request.prompt_ids.size() - 1 - token], .logprob = -1});
      if (request.return_routed_experts)
        output.routed_experts = {1, std::string(static_cast<size_t>(context().routed_experts->row_bytes()), 'e')};
      sequences[i]->accept(std::move(output));
      if (generation.stream) generation.format->stream_update(sequences, i, streamed);
    }
    plait::RequestOutput last;
    last.finish = plait::Finish{.kind = plait::FinishKind::kLength};
    sequences[i]->accept(std::move(last));
    if (generation.stream) generation.format->stream_update(sequences, i, streamed);
  }
  boost::system::error_code problem;
  if (!generation.stream) {
    boost::json::parse(whole(generation.format->body(sequences)), problem);
    PLAIT_ASSERT(!problem, "an answer is JSON");
    return;
  }
  generation.format->stream_end(sequences, streamed);
  const std::string events = whole(streamed);
  for (size_t begin = 0; begin < events.size();) {
    const size_t end = events.find("\n\n", begin);
    PLAIT_ASSERT(events.compare(begin, 6, "data: ") == 0 && end != std::string::npos, "events are events");
    boost::json::parse(std::string_view(events).substr(begin + 6, end - begin - 6), problem);
    PLAIT_ASSERT(!problem, "an event is JSON");
    begin = end + 2;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto body = plait::parse_json_body({reinterpret_cast<const char*>(data), size});
  if (body.has_error()) return 0;
  for (const auto parser : {plait::parse_generate, plait::parse_completions, plait::parse_chat}) {
    auto request = parser(context(), *body);
    if (request.has_error()) {
      PLAIT_ASSERT(request.error().status == 400 || request.error().status == 404, "a client's mistake");
      boost::json::parse(plait::to_json(request.error()));
      continue;
    }
    for (const plait::SequenceRequest& sequence : request->sequences) check(sequence);
    answer(*request);
  }
  return 0;
}
