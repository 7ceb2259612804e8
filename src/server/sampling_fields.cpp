#include "server/sampling_fields.h"

#include <charconv>
#include <random>

namespace plait {
namespace {

constexpr double kMostTemperature = std::numeric_limits<float>::max();
constexpr double kMaxLogitBias = 100;

struct NumberField {
  std::string_view name;
  double SamplingParams::*member;
  NumberRange native;
  NumberRange openai;
};
constexpr NumberField kNumberFields[] = {
    {"temperature", &SamplingParams::temperature, {0, kMostTemperature}, {0, 2}},
    {"top_p", &SamplingParams::top_p, {0, 1, true}, {0, 1, true}},
    {"min_p", &SamplingParams::min_p, {0, 1}, {0, 1}},
    {"frequency_penalty", &SamplingParams::frequency_penalty, {-2, 2}, {-2, 2}},
    {"presence_penalty", &SamplingParams::presence_penalty, {-2, 2}, {-2, 2}},
    {"repetition_penalty", &SamplingParams::repetition_penalty, {0, 2, true}, {0, 2, true}},
};

// Constrain what may be generated: silently ignoring one of them would break the caller.
constexpr std::string_view kConstraints[] = {"json_schema", "regex", "ebnf", "structural_tag", "stop_regex"};

// OpenAI's names in /generate's sampling_params: without a word they would be ignored, and the default taken.
struct OtherName {
  std::string_view name;
  std::string_view here;
};
constexpr OtherName kOtherNames[] = {{"max_tokens", "max_new_tokens"},
                                     {"max_completion_tokens", "max_new_tokens"},
                                     {"min_tokens", "min_new_tokens"},
                                     {"seed", "sampling_seed"}};

struct Spelling {
  std::string_view max_new_tokens;
  std::string_view min_new_tokens;
  std::string_view seed;
};
constexpr Spelling kNativeSpelling{"max_new_tokens", "min_new_tokens", "sampling_seed"};
constexpr Spelling kOpenAiSpelling{"max_tokens", "min_tokens", "seed"};

void apply_checkpoint_defaults(const ModelConfig::GenerationDefaults& defaults, SamplingParams& params) {
  if (defaults.temperature) params.temperature = *defaults.temperature;
  if (defaults.top_p) params.top_p = *defaults.top_p;
  if (defaults.repetition_penalty) params.repetition_penalty = *defaults.repetition_penalty;
  // 0 is "all" in generation_config.json
  if (defaults.top_k && *defaults.top_k > 0) params.top_k = *defaults.top_k;
}

void read_top_k(RequestFields& fields, SamplingParams& params) {
  const std::optional<int64_t> top_k = fields.integer("top_k", {-1});
  if (top_k == 0) {
    fields.fail("top_k", "must be -1 (all) or at least 1, got 0");
  } else if (top_k) {
    params.top_k = *top_k;
  }
}

void read_logit_bias(RequestFields& fields, const ApiContext& context, SamplingParams& params) {
  const boost::json::object* biases = fields.object("logit_bias");
  if (biases == nullptr) return;
  if (biases->size() > context.limits.logit_biases) {
    fields.fail("logit_bias", fmt::format("must not have more than {} entries", context.limits.logit_biases));
    return;
  }
  RequestFields entries(*biases, fields.path_of("logit_bias"));
  for (const auto& [key, value] : *biases) {
    const std::string_view name(key.data(), key.size());
    int64_t id = -1;
    const auto [end, problem] = std::from_chars(name.data(), name.data() + name.size(), id);
    const bool is_id = problem == std::errc() && end == name.data() + name.size();
    if (!is_id || id < 0 || id >= context.config.vocab_size) {
      fields.fail("logit_bias",
                  fmt::format("must map token ids from 0 to {} to numbers", context.config.vocab_size - 1));
      return;
    }
    const std::optional<double> bias = entries.number(name, {-kMaxLogitBias, kMaxLogitBias});
    if (bias) params.logit_bias.emplace_back(static_cast<int32_t>(id), static_cast<float>(*bias));
  }
  fields.absorb(entries);
}

void read_stop(RequestFields& fields, const ApiContext& context, SamplingChoice& choice) {
  choice.stop = fields.texts("stop", context.limits.stop_strings, context.limits.stop_string_bytes);
  for (const std::string& stop : choice.stop) {
    if (stop.empty()) fields.fail("stop", "must not contain an empty string");
  }
  if (!choice.stop.empty() && context.tokenizer == nullptr) {
    fields.fail("stop", "needs a tokenizer, and this server runs with --skip-tokenizer-init: use stop_token_ids");
  }
}

std::optional<int64_t> read_max_new_tokens(RequestFields& fields, SamplingSpelling spelling) {
  if (spelling == SamplingSpelling::kNative) return fields.integer(kNativeSpelling.max_new_tokens, {0});
  // max_tokens is the older name of max_completion_tokens
  const std::optional<int64_t> completion = fields.integer("max_completion_tokens", {0});
  const std::optional<int64_t> plain = fields.integer(kOpenAiSpelling.max_new_tokens, {0});
  return completion ? completion : plain;
}

}  // namespace

uint64_t draw_seed() {
  static thread_local std::mt19937_64 generator{[] {
    std::random_device device;
    std::seed_seq seeds{device(), device(), device(), device()};
    return std::mt19937_64(seeds);
  }()};
  return generator();
}

uint64_t sample_seed(uint64_t seed, int64_t index) {
  if (index == 0) return seed;
  // splitmix64's finaliser
  uint64_t mixed = seed + static_cast<uint64_t>(index) * 0x9e3779b97f4a7c15U;
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9U;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebU;
  return mixed ^ (mixed >> 31);
}

SamplingChoice read_sampling(RequestFields& fields, SamplingSpelling spelling, const ApiContext& context) {
  const bool native = spelling == SamplingSpelling::kNative;
  const Spelling& names = native ? kNativeSpelling : kOpenAiSpelling;
  SamplingChoice choice;
  SamplingParams& params = choice.params;
  if (!native) apply_checkpoint_defaults(context.config.generation, params);

  if (native) {
    for (const OtherName& other : kOtherNames) {
      fields.refuse(other.name, fmt::format("/generate calls it {}", other.here));
    }
  }
  for (const NumberField& field : kNumberFields) {
    if (const auto value = fields.number(field.name, native ? field.native : field.openai)) {
      params.*field.member = *value;
    }
  }
  read_top_k(fields, params);
  read_logit_bias(fields, context, params);
  read_stop(fields, context, choice);
  params.stop_token_ids = fields.token_ids("stop_token_ids", context.limits.stop_token_ids, context.config.vocab_size);

  choice.max_new_tokens = read_max_new_tokens(fields, spelling);
  params.min_new_tokens = fields.integer(names.min_new_tokens, {0}).value_or(0);
  choice.samples = fields.integer("n", {1, context.limits.samples}).value_or(1);
  const auto seed = fields.integer(names.seed, {std::numeric_limits<int64_t>::min()});
  params.seed = seed ? static_cast<uint64_t>(*seed) : draw_seed();

  params.ignore_eos = fields.boolean("ignore_eos").value_or(false);
  choice.skip_special_tokens = fields.boolean("skip_special_tokens").value_or(true);
  choice.no_stop_trim = fields.boolean("no_stop_trim").value_or(false);
  for (const std::string_view constraint : kConstraints) {
    fields.refuse(constraint, "constrained decoding is not part of this version");
  }
  fields.refuse("custom_params", "custom logit processors are not part of this version");
  return choice;
}

ApiStatus apply_sampling(const SamplingChoice& choice, std::optional<int64_t> default_max_new_tokens,
                         const ApiContext& context, SequenceRequest& sequence) {
  constexpr std::string_view kCode = "context_length_exceeded";
  const auto prompt_tokens = static_cast<int64_t>(sequence.request.prompt_ids.size());
  if (prompt_tokens == 0) return bad_request("The prompt is empty: it must have at least one token.", "prompt");
  const int64_t room = context.context_tokens - prompt_tokens;
  if (room < (choice.max_new_tokens == 0 ? 0 : 1)) {
    return bad_request(fmt::format("The prompt has {} tokens; this server's limit is {} tokens for prompt and output "
                                   "together, at least one of them output.",
                                   prompt_tokens, context.context_tokens),
                       "prompt", kCode);
  }
  const int64_t wanted = choice.max_new_tokens.value_or(std::min(room, default_max_new_tokens.value_or(room)));
  if (wanted > room) {
    return bad_request(
        fmt::format("The prompt's {} tokens and the {} tokens asked for exceed this server's limit of {} tokens for "
                    "prompt and output together. Shorten the prompt or ask for at most {}.",
                    prompt_tokens, wanted, context.context_tokens, room),
        "max_tokens", kCode);
  }
  if (choice.params.min_new_tokens > wanted) {
    return bad_request(fmt::format("The least number of new tokens ({}) is larger than the most ({}).",
                                   choice.params.min_new_tokens, wanted),
                       "min_new_tokens");
  }
  Request& request = sequence.request;
  request.sampling = choice.params;
  request.sampling.max_new_tokens = wanted;
  request.eos_token_ids = context.config.eos_token_ids;
  request.time_limit = context.time_limit;
  sequence.stop = choice.stop;
  sequence.skip_special_tokens = choice.skip_special_tokens;
  sequence.no_stop_trim = choice.no_stop_trim;

  if (Status valid = request.sampling.validate(context.config.vocab_size); valid.has_error()) {
    return to_api_error(valid.error());
  }
  return {};
}

}  // namespace plait
