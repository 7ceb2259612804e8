#include "command_line.h"

#include <charconv>
#include <random>

#include <CLI/CLI.hpp>

#include "base/json.h"
#include "foreign_flags.h"
#include "text/chat.h"
#include "topology/rules.h"

namespace plait::app {
namespace {

constexpr int64_t kMostCount = int64_t{1} << 31;

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t end = text.find(separator); end != std::string::npos; end = text.find(separator, begin)) {
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  parts.push_back(text.substr(begin));
  return parts;
}

Result<std::vector<int64_t>> parse_counts(const char* flag, const std::string& text) {
  std::vector<int64_t> counts;
  for (const std::string& part : split(text, ',')) {
    int64_t count = 0;
    const auto [end, problem] = std::from_chars(part.data(), part.data() + part.size(), count);
    if (problem != std::errc() || end != part.data() + part.size() || count < 1 || count > kMostCount) {
      return invalid(fmt::format("{}: '{}' is not a list of positive numbers such as 1,4,16", flag, text));
    }
    counts.push_back(count);
  }
  return counts;
}

// As one would type it.
std::string value_text(const Target& target) {
  return std::visit(
      [](auto* value) -> std::string {
        using T = std::remove_pointer_t<decltype(value)>;
        if constexpr (std::is_same_v<T, bool>) {
          return *value ? "on" : "off";
        } else if constexpr (std::is_same_v<T, std::chrono::seconds>) {
          return fmt::format("{}", value->count());
        } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
          return fmt::format("{}", fmt::join(*value, " "));
        } else {
          return fmt::format("{}", *value);
        }
      },
      target);
}

std::string first_name(const Flag& flag) {
  return flag.names.substr(0, flag.names.find(','));
}

// Of a flag that is given twice the last one counts, so that a script's flags can be overridden behind it.
template <typename T>
CLI::Option* bind(CLI::App& app, const Flag& flag, T* target) {
  return app.add_option(flag.names, *target, flag.help)->take_last();
}
CLI::Option* bind(CLI::App& app, const Flag& flag, bool* target) {
  return app.add_flag(flag.names, *target, flag.help)->take_last();
}
CLI::Option* bind(CLI::App& app, const Flag& flag, std::chrono::seconds* target) {
  const auto set = [target](const int64_t& seconds) { *target = std::chrono::seconds(seconds); };
  return app.add_option_function<int64_t>(flag.names, set, flag.help)->take_last();
}
CLI::Option* bind(CLI::App& app, const Flag& flag, std::vector<std::string>* target) {
  return app.add_option(flag.names, *target, flag.help)
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

void restrict(CLI::Option* option, const Flag& flag) {
  if (const auto* range = std::get_if<IntegerRange>(&flag.accepts)) {
    option->check(CLI::Range(range->low, range->high).description(""));
  } else if (const auto* reals = std::get_if<RealRange>(&flag.accepts)) {
    option->check(CLI::Range(reals->low, reals->high).description(""));
  } else if (const auto* words = std::get_if<Words>(&flag.accepts)) {
    option->check(CLI::IsMember(words->allowed).description(""));
  }
}

// Groups of flags, nothing before and after them.
class FlagList : public CLI::Formatter {
 public:
  FlagList() { column_width(46); }
  std::string make_usage(const CLI::App*, std::string) const override { return ""; }
  std::string make_group(std::string group, bool is_positional,
                         std::vector<const CLI::Option*> options) const override {
    std::string text = group + ":\n";
    for (const CLI::Option* option : options) text += make_option(option, is_positional);
    return text;
  }
};

// What stands behind the flag's name in --help: the words or the unit, and the default.
std::string argument_text(const Flag& flag) {
  if (std::holds_alternative<bool*>(flag.target)) return "";
  std::string text;
  if (const auto* words = std::get_if<Words>(&flag.accepts)) text = fmt::format("{}", fmt::join(words->allowed, " | "));
  const std::string value = value_text(flag.target);
  if (value.empty()) return text.empty() ? "..." : text;
  return text.empty() ? fmt::format("[{}]", value) : fmt::format("{} [{}]", text, value);
}

Status interpret_bench(const FlagWords& words, BenchOptions& bench) {
  bench.weights.clear();
  for (const std::string& word : split(words.bench_weights, ',')) {
    if (word == "bf16") {
      bench.weights.push_back(BenchOptions::WeightKind::kBF16);
    } else if (word == "fp8") {
      bench.weights.push_back(BenchOptions::WeightKind::kFP8);
    } else {
      return invalid(fmt::format("--weights: '{}' is neither bf16 nor fp8", word));
    }
  }
  PLAIT_ASSIGN_OR_RETURN(bench.prefill_tokens, parse_counts("--prefill", words.bench_prefill));
  PLAIT_ASSIGN_OR_RETURN(bench.decode_batch, parse_counts("--batch", words.bench_batch));
  PLAIT_ASSIGN_OR_RETURN(bench.decode_context_tokens, parse_counts("--context", words.bench_context));
  if (!words.bench_rows.empty()) {
    PLAIT_ASSIGN_OR_RETURN(bench.kernel_rows, parse_counts("--rows", words.bench_rows));
  }
  bench.deepgemm_sizes = words.bench_sizes == "deepgemm";
  if (words.bench_seconds > 0) bench.seconds_per_row = bench.tune_seconds = words.bench_seconds;
  if (words.bench_format == "lines") bench.format = BenchOptions::Format::kLines;
  if (words.bench_format == "json") bench.format = BenchOptions::Format::kJson;
  return {};
}

Status interpret_seed(const FlagWords& words, SamplingParams& sampling) {
  if (words.seed.empty()) {
    sampling.seed = std::random_device()();
    return {};
  }
  const char* end = words.seed.data() + words.seed.size();
  const auto [stop, problem] = std::from_chars(words.seed.data(), end, sampling.seed);
  if (problem != std::errc() || stop != end) {
    return invalid(fmt::format("--seed: '{}' is not a number from 0 to 2^64-1", words.seed));
  }
  return {};
}

// Words become values of their types, and what two modules must agree on is copied from the one flag that sets it.
Status interpret(const FlagWords& words, Settings& settings) {
  ServeOptions& serve = settings.serve;
  EngineOptions& engine = serve.engine;
  engine.dummy_weights = words.load_format == "dummy";
  engine.implementation =
      words.kernels == "reference" ? kernels::Implementation::kReference : kernels::Implementation::kFast;

  auto overrides = json::parse_object(words.json_model_override_args);
  if (overrides.has_error()) return std::move(overrides).error().within("--json-model-override-args");
  engine.config_overrides = std::move(*overrides);

  if (!serve.chat_template.empty()) PLAIT_RETURN_IF_ERROR(parse_chat_format(serve.chat_template));

  serve.scheduler.radix_cache = !words.disable_radix_cache;
  serve.scheduler.overlap = engine.overlap = !words.disable_overlap_schedule;
  serve.scheduler.policy = words.schedule_policy == "priority" ? SchedulePolicy::kPriority : SchedulePolicy::kFirstCome;
  serve.scheduler.max_running_requests = engine.max_running_requests;
  serve.scheduler.chunked_prefill_tokens = engine.chunked_prefill_tokens;
  serve.scheduler.context_tokens = engine.context_tokens;
  if (words.disable_metrics) serve.enable_metrics = false;
  if (serve.served_model_name.empty()) serve.served_model_name = engine.model_path;
  return {};
}

Status check_needs(Command command, const Settings& settings) {
  const bool has_model = !settings.engine().model_path.empty();
  if ((command == kServe || command == kGenerate) && !has_model) {
    return invalid("--model-path is missing: a checkpoint folder or a hub id");
  }
  if (command == kCompile && !has_model) return invalid("--model-path is missing: the model to build kernels for");
  if (command == kPlan && !has_model) return invalid("--model-path is missing: the model to plan for");
  if (command == kCheck && !has_model && !settings.check.environment) {
    return invalid("--model-path is missing: the checkpoint to check");
  }
  if (command == kBench) {
    const BenchOptions& bench = settings.bench;
    if (bench.kernels && bench.tune) return invalid("--kernels measures and --tune makes a table: give one of them");
    if (!bench.kernels && !bench.tune && settings.engine().parallel != ParallelConfig())
      return invalid("parallel flags are for --kernels and --tune; --parallel measures ranks of its own");
  }
  if (command == kGenerate) {
    const GenerateOptions& generate = settings.generate;
    if (generate.prompt.empty() == generate.input_ids.empty()) {
      return invalid("give either --prompt (- reads standard input) or --input-ids");
    }
    if (!generate.input_ids.empty() && generate.chat) return invalid("--chat needs a text, not --input-ids");
    if (!generate.system.empty() && !generate.chat) return invalid("--system needs --chat");
    if (settings.serve.skip_tokenizer_init && generate.input_ids.empty()) {
      return invalid("--skip-tokenizer-init needs --input-ids: without a tokenizer there is no text");
    }
  }
  return {};
}

std::string masked(const Flag& flag, const std::string& value) {
  return flag.names == "--api-key" ? std::string("***") : value;
}

}  // namespace

Result<ParsedCommandLine> parse_command_line(Command command, const std::vector<std::string>& arguments) {
  ParsedCommandLine parsed;
  Settings& settings = parsed.settings;
  // Only a server tells its story; the others print an answer.
  if (command != kServe) settings.serve.log_level = "warning";
  FlagWords words;

  CLI::App app("", "plait");
  app.set_help_flag("");
  bool wants_help = false;
  app.allow_extras();
  app.option_defaults()->always_capture_default(false);

  const std::vector<Flag> flags = flag_registry(settings, words);
  std::vector<std::string> names = {"--help", "-h"};
  std::vector<std::pair<const Flag*, std::string>> defaults;
  for (const Flag& flag : flags) {
    if ((flag.commands & command) == 0) continue;
    CLI::Option* option = std::visit([&](auto* target) { return bind(app, flag, target); }, flag.target);
    option->group(flag.group)->type_name("")->option_text(argument_text(flag));
    restrict(option, flag);
    for (std::string& name : split(flag.names, ',')) names.push_back(std::move(name));
    defaults.emplace_back(&flag, value_text(flag.target));
  }
  app.add_flag("-h,--help", wants_help, "this text")->group("Other");
  app.formatter(std::make_shared<FlagList>());

  try {
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::ParseError& problem) {
    return invalid(problem.what());
  }
  if (wants_help) {
    parsed.wants_help = true;
    parsed.help = app.help();
    return parsed;
  }
  PLAIT_ASSIGN_OR_RETURN(parsed.notes, judge_foreign_flags(app.remaining(), names));

  for (const auto& [flag, default_text] : defaults) {
    const std::string value = value_text(flag->target);
    if (value == default_text) continue;
    parsed.non_default.push_back(std::holds_alternative<bool*>(flag->target)
                                     ? first_name(*flag)
                                     : fmt::format("{} {}", first_name(*flag), masked(*flag, value)));
  }
  PLAIT_RETURN_IF_ERROR(interpret(words, settings));
  PLAIT_RETURN_IF_ERROR(interpret_bench(words, settings.bench));
  PLAIT_RETURN_IF_ERROR(interpret_parallel(words, settings));
  PLAIT_RETURN_IF_ERROR(check_needs(command, settings));
  // `plan` and `check` print every finding; the others stop before they look at a model.
  if ((command & (kServe | kGenerate)) != 0)
    PLAIT_RETURN_IF_ERROR(judge(settings.engine().parallel, /*facts=*/nullptr).status());
  PLAIT_RETURN_IF_ERROR(interpret_seed(words, settings.generate.sampling));
  return parsed;
}

}  // namespace plait::app
