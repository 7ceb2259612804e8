#include "server/openai_completions.h"

#include "server/json_text.h"
#include "server/openai_common.h"
#include "server/prompts.h"
#include "server/request_fields.h"
#include "server/sampling_fields.h"

namespace plait {
namespace {

namespace json = boost::json;

constexpr int64_t kDefaultMaxTokens = 16;  // OpenAI's

struct CompletionOptions {
  std::string id;
  StreamOptions stream;
  bool echo = false;
  bool logprobs = false;
  RoutedExpertsFormat experts = RoutedExpertsFormat::kInt32;
};

size_t code_points(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char byte) { return (byte & 0xc0) != 0x80; });
}

// The parallel lists of one "logprobs" object.
class LogprobLists {
 public:
  LogprobLists(const Tokenizer* tokenizer, bool skip_special_tokens, bool with_top)
      : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens), with_top_(with_top) {}

  void add(int32_t id, std::optional<double> logprob, const std::vector<TokenLogprob>& top, size_t& offset) {
    separate_();
    append_quoted(tokens_, token_text(tokenizer_, id));
    add_logprob(logprob);
    add_top(id, logprob, top);
    fmt::format_to(std::back_inserter(offsets_), "{}", offset);
    offset += code_points(tokenizer_->decode(std::span(&id, 1), skip_special_tokens_));
  }

  void append_to(std::string& out) const {
    out += R"({"tokens":[)";
    out += tokens_;
    out += R"(],"token_logprobs":[)";
    out += logprobs_;
    out += R"(],"top_logprobs":)";
    if (with_top_) {
      out += '[';
      out += top_;
      out += ']';
    } else {
      out += "null";
    }
    out += R"(,"text_offset":[)";
    out += offsets_;
    out += "]}";
  }

 private:
  void separate_() {
    if (std::exchange(first_, false)) return;
    for (std::string* list : {&tokens_, &logprobs_, &top_, &offsets_}) *list += ',';
  }

  void add_logprob(std::optional<double> logprob) {
    if (logprob) {
      append_logprob(logprobs_, *logprob);
    } else {
      logprobs_ += "null";
    }
  }

  // The most likely tokens, and the chosen one if it is not among them. Different tokens may be equal as text (parts of
  // characters): the more likely one stays.
  void add_top(int32_t id, std::optional<double> logprob, const std::vector<TokenLogprob>& top) {
    if (!logprob) {
      top_ += "null";
      return;
    }
    top_ += '{';
    std::vector<std::string> seen;
    const auto add_one = [&](int32_t candidate, double value) {
      std::string text = token_text(tokenizer_, candidate);
      if (std::find(seen.begin(), seen.end(), text) != seen.end()) return;
      if (!seen.empty()) top_ += ',';
      append_quoted(top_, text);
      top_ += ':';
      append_logprob(top_, value);
      seen.push_back(std::move(text));
    };
    for (const TokenLogprob& candidate : top) add_one(candidate.id, candidate.logprob);
    add_one(id, *logprob);
    top_ += '}';
  }

  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  bool with_top_;
  bool first_ = true;
  std::string tokens_, logprobs_, top_, offsets_;
};

class CompletionFormat : public ResponseFormat {
 public:
  CompletionFormat(const ApiContext& context, CompletionOptions options, std::vector<std::string> echoes)
      : context_(context),
        options_(std::move(options)),
        echoes_(std::move(echoes)),
        head_(answer_head(options_.id, "text_completion", context)) {}

  void stream_update(Sequences sequences, size_t index, AnswerText& events) override {
    const ClientSequence& sequence = *sequences[index];
    states_.resize(sequences.size());
    State& state = states_[index];
    const bool first = !std::exchange(state.started, true);
    const bool news = !sequence.fresh_text().empty() || (options_.logprobs && !sequence.fresh_tokens().empty());
    if (!news && !sequence.finish() && !(first && options_.echo)) return;
    event_.clear();
    event_.text = "{" + head_ + R"(,"choices":[)";
    append_choice(sequence, index, first, sequence.fresh_text(), sequence.fresh_tokens(), state.offset, event_);
    event_.text += ']';
    append_event_usage(event_.text, options_.stream, sequences);
    event_.text += '}';
    append_event(events, std::move(event_));
  }

  void stream_end(Sequences sequences, AnswerText& events) override {
    append_end_events(head_, context_, options_.stream, options_.experts, sequences, events);
  }

  AnswerText body(Sequences sequences) override {
    AnswerText out;
    out.text = "{" + head_ + R"(,"choices":[)";
    Separator separator;
    for (size_t i = 0; i < sequences.size(); ++i) {
      size_t offset = 0;
      separator(out.text);
      append_choice(*sequences[i], i, true, sequences[i]->text(), sequences[i]->tokens(), offset, out);
    }
    out.text += R"(],"usage":)";
    append_usage(out.text, sequences);
    append_sglext(out, context_, options_.experts, *sequences.front());
    out.text += '}';
    return out;
  }

 private:
  struct State {
    bool started = false;
    size_t offset = 0;  // code points of the text so far
  };

  void append_choice(const ClientSequence& sequence, size_t index, bool first, std::string_view text,
                     std::span<const OutputToken> tokens, size_t& offset, AnswerText& answer) const {
    std::string& out = answer.text;
    const bool with_prompt = first && options_.echo;
    fmt::format_to(std::back_inserter(out), R"({{"index":{},"text":")", index);
    if (with_prompt) append_escaped(out, echoes_[sequence.request().prompt_index]);
    append_escaped(out, text);
    out += R"(","logprobs":)";
    append_logprobs(sequence, with_prompt, tokens, offset, out);
    out += ',';
    append_finish(out, sequence);
    if (index > 0) append_sglext(answer, context_, options_.experts, sequence);
    out += '}';
  }

  void append_logprobs(const ClientSequence& sequence, bool with_prompt, std::span<const OutputToken> tokens,
                       size_t& offset, std::string& out) const {
    if (!options_.logprobs) {
      out += "null";
      return;
    }
    LogprobLists lists(context_.tokenizer, sequence.request().skip_special_tokens,
                       sequence.request().request.top_logprobs > 0);
    if (with_prompt) {
      for (const PromptLogprob& position : sequence.prompt_logprobs()) {
        lists.add(position.id, position.logprob, position.top, offset);
      }
    }
    for (const OutputToken& token : tokens) lists.add(token.id, token.logprob, token.top, offset);
    lists.append_to(out);
  }

  const ApiContext& context_;
  CompletionOptions options_;
  std::vector<std::string> echoes_;  // text of each prompt, with echo
  std::string head_;
  std::vector<State> states_;
  AnswerText event_;
};

std::vector<std::string> echo_texts(const ApiContext& context, const PromptList& prompts) {
  if (!prompts.texts.empty()) return prompts.texts;
  std::vector<std::string> texts;
  for (const auto& ids : prompts.ids) texts.push_back(context.tokenizer->decode(ids, true));
  return texts;
}

}  // namespace

ApiResult<GenerationRequest> parse_completions(const ApiContext& context, const json::object& body) {
  if (context.tokenizer == nullptr) {
    return bad_request("This server runs with --skip-tokenizer-init: use /generate with input_ids.");
  }
  RequestFields fields(body);
  PLAIT_RETURN_IF_ERROR(check_model(context, fields));
  refuse_unserved_openai_fields(fields);
  fields.refuse("suffix", "insertion is not part of this version");
  CompletionOptions options{.id = read_answer_id(context, fields, "cmpl"), .stream = read_stream_options(fields)};
  options.echo = fields.boolean("echo").value_or(false);
  const auto logprobs = fields.integer("logprobs", {0, context.limits.openai_top_logprobs});
  options.logprobs = logprobs.has_value();
  const std::optional<size_t> replica = read_replica(context, fields);
  const SamplingChoice choice = read_sampling(fields, SamplingSpelling::kOpenAi, context);
  const auto best_of = fields.integer("best_of", {1, context.limits.samples});
  if (best_of && *best_of != choice.samples) fields.fail("best_of", "is only supported if it equals n");
  const RoutedExpertsChoice experts = read_routed_experts(fields, context);
  options.experts = experts.format;
  PLAIT_RETURN_IF_ERROR(fields.status());

  const json::value* prompt = fields.value("prompt");
  if (prompt == nullptr) return bad_request("prompt is missing.", "prompt");
  PLAIT_ASSIGN_OR_RETURN(PromptList prompts, read_prompts(context, *prompt, "prompt", PromptForm::kEither));

  GenerationRequest generation{.stream = options.stream.stream};
  generation.format = std::make_unique<CompletionFormat>(
      context, options, options.echo ? echo_texts(context, prompts) : std::vector<std::string>());
  for (size_t i = 0; i < prompts.ids.size(); ++i) {
    SequenceRequest sequence{.rid = options.id, .replica = replica, .prompt_index = i};
    if (prompts.list) {
      sequence.rid = fmt::format("{}_{}", options.id, i);
      sequence.group = options.id;
    }
    Request& request = sequence.request;
    request.prompt_ids = std::move(prompts.ids[i]);
    request.return_logprob = options.logprobs;
    request.logprob_start = options.logprobs && options.echo ? 0 : -1;
    request.top_logprobs = static_cast<int32_t>(logprobs.value_or(0));
    apply(experts, request);
    PLAIT_RETURN_IF_ERROR(add_samples(context, choice, kDefaultMaxTokens, std::move(sequence), generation));
  }
  return generation;
}

}  // namespace plait
