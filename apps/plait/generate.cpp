#include <charconv>
#include <cstdio>
#include <iostream>
#include <iterator>

#include "base/units.h"
#include "checkpoint/checkpoint.h"
#include "command.h"
#include "engine/engine.h"
#include "scheduler/scheduler.h"
#include "text/chat.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace plait::app {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

Result<std::vector<int32_t>> parse_ids(const std::string& text, int64_t vocab_size) {
  std::vector<int32_t> ids;
  const char* cursor = text.data();
  const char* const end = cursor + text.size();
  while (true) {
    int32_t id = -1;
    const auto [stop, problem] = std::from_chars(cursor, end, id);
    if (problem != std::errc() || (stop != end && *stop != ',')) {
      return invalid(fmt::format("--input-ids: '{}' is not a list of token ids such as 1,2,3", text));
    }
    if (id < 0 || id >= vocab_size) {
      return invalid(fmt::format("--input-ids: {} is outside the vocabulary, [0, {})", id, vocab_size));
    }
    ids.push_back(id);
    if (stop == end) return ids;
    cursor = stop + 1;
  }
}

Result<std::vector<int32_t>> encode_prompt(const Settings& settings, const ModelConfig& config,
                                           const Tokenizer* tokenizer) {
  const GenerateOptions& options = settings.generate;
  if (!options.input_ids.empty()) return parse_ids(options.input_ids, config.vocab_size);

  std::string text = options.prompt;
  if (text == "-") text.assign(std::istreambuf_iterator<char>(std::cin), {});
  if (!options.chat) return tokenizer->encode(text, true);

  ChatFormat format = detect_chat_format(config, *tokenizer);
  if (!settings.serve.chat_template.empty()) {
    PLAIT_ASSIGN_OR_RETURN(format, parse_chat_format(settings.serve.chat_template));
  }
  ChatRequest chat;
  if (!options.system.empty()) chat.messages.push_back({.role = "system", .content = options.system});
  chat.messages.push_back({.role = "user", .content = std::move(text)});
  PLAIT_ASSIGN_OR_RETURN(const std::string prompt, encode_chat(format, chat, *tokenizer));
  return tokenizer->encode(prompt, false);
}

// Prints tokens as they come, and remembers what the closing line says.
class Printer {
 public:
  // `tokenizer` may be nullptr: ids are printed.
  Printer(const Tokenizer* tokenizer, std::vector<std::string> stop) {
    if (tokenizer) text_.emplace(tokenizer, std::move(stop), /*skip_special_tokens=*/true, /*include_stop=*/false);
  }

  // True once nothing more is wanted.
  bool print(const RequestOutput& output) {
    if (!output.tokens.empty() && tokens_ == 0) first_token_ = Clock::now();
    std::vector<int32_t> ids;
    for (const OutputToken& token : output.tokens) ids.push_back(token.id);
    tokens_ += static_cast<int64_t>(ids.size());
    if (output.finish) finish_ = output.finish;
    if (text_) {
      write(text_->push(ids));
      if (finish_) write(text_->finish());
    } else {
      for (const int32_t id : ids) write(fmt::format("{}{}", separator(), id));
    }
    return finish_.has_value() || matched_stop();
  }

  bool matched_stop() const { return text_ && text_->matched_stop().has_value(); }
  const std::optional<Finish>& finish() const { return finish_; }
  int64_t tokens() const { return tokens_; }
  Clock::time_point first_token() const { return first_token_; }

 private:
  const char* separator() { return std::exchange(wrote_id_, true) ? " " : ""; }
  static void write(const std::string& text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }

  std::optional<StreamingDetokenizer> text_;
  bool wrote_id_ = false;
  int64_t tokens_ = 0;
  Clock::time_point first_token_;
  std::optional<Finish> finish_;
};

const char* reason_of(const Printer& printer) {
  if (printer.matched_stop()) return "stop string";
  switch (printer.finish()->kind) {
    case FinishKind::kStop:
      return "end of sequence";
    case FinishKind::kLength:
      return "length";
    case FinishKind::kAbort:
      return "aborted";
  }
  return "";
}

void print_speed(const Printer& printer, int64_t prompt_tokens, Clock::time_point begin, Clock::time_point end) {
  const double prefill = seconds_between(begin, printer.first_token());
  const double decode = seconds_between(printer.first_token(), end);
  const int64_t decoded = printer.tokens() - 1;  // the prefill makes the first one
  fmt::print(stderr, "[prompt {} tokens in {}, {:.0f} tok/s; output {} tokens", prompt_tokens, format_seconds(prefill),
             static_cast<double>(prompt_tokens) / prefill, printer.tokens());
  if (decoded > 0) fmt::print(stderr, ", {:.1f} tok/s", static_cast<double>(decoded) / decode);
  fmt::print(stderr, "; ended by {}]\n", reason_of(printer));
}

Status generate(const Settings& settings) {
  PLAIT_ASSIGN_OR_RETURN(const std::filesystem::path folder, resolve_model_path(settings.engine().model_path));
  std::optional<Tokenizer> tokenizer;
  if (!settings.serve.skip_tokenizer_init) {
    PLAIT_ASSIGN_OR_RETURN(tokenizer, Tokenizer::load(folder));
  }
  EngineOptions engine_options = settings.engine();
  engine_options.max_running_requests = 1;
  PLAIT_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::create(engine_options));
  if (!engine->leads()) return engine->follow(/*ready=*/[] {});

  Request request;
  request.id = 1;
  PLAIT_ASSIGN_OR_RETURN(request.prompt_ids,
                         encode_prompt(settings, engine->config(), tokenizer ? &*tokenizer : nullptr));
  PLAIT_RETURN_IF_ERROR(settings.generate.sampling.validate(engine->config().vocab_size));
  request.sampling = settings.generate.sampling;
  request.eos_token_ids = engine->config().eos_token_ids;
  const auto prompt_tokens = static_cast<int64_t>(request.prompt_ids.size());

  SchedulerOptions scheduler_options = settings.serve.scheduler;
  scheduler_options.max_running_requests = 1;
  scheduler_options.context_tokens = engine->context_tokens();
  Printer printer(tokenizer ? &*tokenizer : nullptr, settings.generate.stop);
  Scheduler* running = nullptr;
  Scheduler scheduler(scheduler_options, *engine, [&](std::vector<RequestOutput>&& outputs) {
    for (const RequestOutput& output : outputs) {
      if (printer.print(output)) running->stop();
    }
  });
  running = &scheduler;

  const auto begin = Clock::now();
  PLAIT_RETURN_IF_ERROR(scheduler.submit(std::move(request)));
  scheduler.run();
  const auto end = Clock::now();
  engine->end();
  fmt::print("\n");
  std::fflush(stdout);
  if (printer.finish() && printer.finish()->kind == FinishKind::kAbort && !printer.matched_stop()) {
    return Error{printer.finish()->error, printer.finish()->message};
  }
  print_speed(printer, prompt_tokens, begin, end);
  return {};
}

}  // namespace

int run_generate(const Settings& settings) {
  const Status status = generate(settings);
  if (status.has_value()) return kExitSuccess;
  fmt::print(stderr, "plait generate: {}\n", status.error().message);
  return status.error().kind == ErrorKind::kInvalid ? kExitUsage : kExitFailure;
}

}  // namespace plait::app
