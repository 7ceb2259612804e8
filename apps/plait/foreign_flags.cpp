#include "foreign_flags.h"

#include <numeric>

namespace plait::app {
namespace {

// `neutral` lists the values that ask for nothing beyond what plait does, separated by '|'. A switch has none: it is
// accepted if `harmless`.
struct ForeignFlag {
  std::string_view name;
  bool takes_value;
  bool harmless;
  std::string_view neutral;
  std::string_view reason;
};

constexpr std::string_view kNoReplicas = "this version of plait does not replicate experts";
constexpr std::string_view kNoBatchOverlap = "this version of plait does not overlap batches";
constexpr std::string_view kNoSpeculation = "this version of plait does not speculate";
constexpr std::string_view kNoTransfer =
    "a KV cache does not travel between engines yet, so each one reads its prompts and decodes; plait plan --kernels "
    "and "
    "plait compile know the roles";
constexpr std::string_view kNoEffectOnCpu = "it concerns GPUs and has no effect on a CPU rank";

constexpr ForeignFlag kForeignFlags[] = {
    {"--moe-runner-backend", true, false, "auto", "plait chooses its kernels itself (--kernels fast | reference)"},
    {"--attention-backend", true, false, "", "plait chooses its kernels itself (--kernels fast | reference)"},
    {"--enable-eplb", false, false, "", kNoReplicas},
    {"--ep-num-redundant-experts", true, false, "0", kNoReplicas},
    {"--device", true, false, "cpu|auto", "this version of plait runs on CPUs only"},
    {"--quantization", true, false, "fp8", "quantisation is read from the checkpoint; BF16 and FP8 128x128 are known"},
    {"--kv-cache-dtype", true, false, "auto", "the KV cache has the type of the activations (--dtype)"},
    {"--speculative-algorithm", true, false, "none", kNoSpeculation},
    {"--speculative-num-steps", true, false, "0", kNoSpeculation},
    {"--speculative-eagle-topk", true, false, "0", kNoSpeculation},
    {"--speculative-num-draft-tokens", true, false, "0", kNoSpeculation},
    {"--disaggregation-mode", true, false, "null", kNoTransfer},
    {"--enable-two-batch-overlap", false, false, "", kNoBatchOverlap},
    {"--enable-single-batch-overlap", false, false, "", kNoBatchOverlap},
    {"--grammar-backend", true, false, "none", "constrained output is not part of this version"},
    {"--lora-paths", true, false, "", "LoRA adapters are not part of this version"},
    {"--enable-lora", false, false, "", "LoRA adapters are not part of this version"},
    {"--tool-call-parser", true, false, "", "tool calls are not parsed from the output in this version"},
    {"--reasoning-parser", true, false, "", "reasoning is not separated from the answer in this version"},
    {"--trust-remote-code", false, true, "", "plait never runs code of a model folder"},
    {"--disable-cuda-graph", false, true, "", kNoEffectOnCpu},
    {"--disable-cuda-graph-padding", false, true, "", kNoEffectOnCpu},
    {"--cuda-graph-max-bs", true, true, "", kNoEffectOnCpu},
    {"--cuda-graph-bs", true, true, "", kNoEffectOnCpu},
    {"--disable-custom-all-reduce", false, true, "", "there is no all-reduce on one rank"},
    {"--skip-server-warmup", false, true, "", "the engine's first step is part of its start"},
    {"--tokenizer-path", true, false, "", "the tokenizer is read from --model-path"},
    {"--revision", true, false, "main", "a hub id stands for the revision that refs/main of the cache names"},
    {"--random-seed", true, true, "", "a request without a seed draws its own"},
    {"--max-prefill-tokens", true, true, "", "--chunked-prefill-size bounds a step"},
    {"--stream-interval", true, true, "1", "every step streams its tokens"},
    {"--log-level-http", true, true, "", "one --log-level for all"},
    {"--schedule-conservativeness", true, true, "", "plait admits by exact accounting and retracts when KV runs out"},
};

const ForeignFlag* find_foreign(std::string_view name) {
  for (const ForeignFlag& flag : kForeignFlags) {
    if (flag.name == name) return &flag;
  }
  return nullptr;
}

bool is_neutral(const ForeignFlag& flag, std::string_view value) {
  std::string_view rest = flag.neutral;
  while (!rest.empty()) {
    const size_t bar = rest.find('|');
    if (rest.substr(0, bar) == value) return true;
    if (bar == std::string_view::npos) break;
    rest.remove_prefix(bar + 1);
  }
  return false;
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

Error unknown_flag(std::string_view name, const std::vector<std::string>& known) {
  const std::string nearest = nearest_name(name, known);
  return invalid(nearest.empty() ? fmt::format("unknown flag {}; --help lists them all", name)
                                 : fmt::format("unknown flag {}; did you mean {}?", name, nearest));
}

}  // namespace

std::string nearest_name(std::string_view word, const std::vector<std::string>& known) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& name : known) {
    const size_t distance = edit_distance(word, name);
    if (distance < best_distance) {
      best = name;
      best_distance = distance;
    }
  }
  return best;
}

Result<std::vector<std::string>> judge_foreign_flags(const std::vector<std::string>& arguments,
                                                     const std::vector<std::string>& known) {
  std::vector<std::string> notes;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string_view argument = arguments[i];
    if (!argument.starts_with("-") || argument == "-" || argument == "--") {
      return invalid(fmt::format("unexpected argument '{}': everything is set by flags, see --help", argument));
    }
    const size_t equals = argument.find('=');
    const std::string_view name = argument.substr(0, equals);
    const ForeignFlag* flag = find_foreign(name);
    if (!flag) return unknown_flag(name, known);

    if (!flag->takes_value) {
      if (!flag->harmless) return unsupported(fmt::format("{} is a flag of SGLang: {}", name, flag->reason));
      notes.push_back(fmt::format("{} changes nothing: {}", name, flag->reason));
      continue;
    }
    std::string_view value;
    if (equals != std::string_view::npos) {
      value = argument.substr(equals + 1);
    } else if (i + 1 < arguments.size()) {
      value = arguments[++i];
      // lists, such as --cuda-graph-bs 1 2 4
      while (flag->harmless && i + 1 < arguments.size() && !arguments[i + 1].starts_with("-")) ++i;
    } else {
      return invalid(fmt::format("{} needs a value", name));
    }
    if (flag->harmless || is_neutral(*flag, value)) {
      notes.push_back(fmt::format("{} {} changes nothing: {}", name, value, flag->reason));
    } else {
      return unsupported(fmt::format("{} {} is not possible: {}", name, value, flag->reason));
    }
  }
  return notes;
}

}  // namespace plait::app
