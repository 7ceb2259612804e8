#include "base/environment.h"
#include "base/thread_pool.h"
#include "base/units.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/tensor_names.h"
#include "checkpoint/weight_loader.h"
#include "command.h"
#include "engine/available_memory.h"
#include "engine/engine_setup.h"
#include "engine/replicas.h"
#include "model/model_facts.h"
#include "text/chat.h"
#include "text/tokenizer.h"
#include "topology/rules.h"

namespace plait::app {
namespace {

void line(const char* what, const std::string& text) {
  fmt::print("{:<13}{}\n", what, text);
}

void print_environment() {
  fmt::print("environment variables that plait reads; flags are the interface\n");
  for (const VariableInfo& info : environment_registry()) {
    const auto value = environment(info.variable);
    fmt::print("  {:<16}{}\n  {:<16}{}\n", info.name, value ? *value : "(unset)", "", info.meaning);
  }
}

std::string describe_gate(const GateConfig& gate) {
  const char* const method = gate.method == GateMethod::kGreedy               ? "greedy"
                             : gate.method == GateMethod::kGroupLimitedGreedy ? "group-limited greedy"
                                                                              : "noaux_tc";
  std::string text = fmt::format("{} of {} per token, {} {}", gate.experts_per_token, gate.experts,
                                 gate.scoring == GateScoring::kSigmoid ? "sigmoid" : "softmax", method);
  if (gate.groups > 1) text += fmt::format(", {} of {} groups", gate.kept_groups, gate.groups);
  return text;
}

void print_config(const ModelConfig& config) {
  int64_t sparse_layers = 0;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) sparse_layers += config.layer_has_experts(layer);
  line("family", fmt::format("{}, {} layers of width {}, vocabulary {}", config.model_type, config.num_hidden_layers,
                             config.hidden_size, config.vocab_size));
  line("attention",
       fmt::format("MLA, {} heads, latent {} + {} rotary{}", config.num_attention_heads, config.kv_lora_rank,
                   config.qk_rope_head_dim,
                   config.q_lora_rank ? fmt::format(", queries through rank {}", *config.q_lora_rank) : ""));
  line("experts", config.gate.experts == 0 ? std::string("none")
                                           : fmt::format("in {} layers: {}; {} shared", sparse_layers,
                                                         describe_gate(config.gate), config.n_shared_experts));
  line("positions", fmt::format("{}{}", config.max_position_embeddings,
                                config.rope.yarn ? fmt::format(", YaRN x{} from {}", config.rope.factor,
                                                               config.rope.original_max_positions)
                                                 : ""));
  line("weights", config.fp8_block ? fmt::format("FP8 (e4m3) in blocks of {0}x{0}, the rest {1}", *config.fp8_block,
                                                 name_of(config.weight_dtype))
                                   : std::string(name_of(config.weight_dtype)));
}

Status check_tensors(const EngineSetup& setup) {
  PLAIT_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::open(setup.folder));
  PLAIT_ASSIGN_OR_RETURN(const std::vector<WeightRequest> requests, expected_tensors(setup));
  PLAIT_ASSIGN_OR_RETURN(const LoadReport report, check_weights(checkpoint, requests, setup.config.num_hidden_layers));
  line("tensors", fmt::format("{} as expected, {}", report.tensors, format_bytes(report.bytes)));
  if (!report.set_aside.empty()) {
    line("set aside", fmt::format("{} tensors: multi-token prediction, rotary tables", report.set_aside.size()));
  }
  if (!report.unexpected.empty()) {
    line("unexpected", fmt::format("{} tensors, not used", report.unexpected.size()));
    for (const std::string& folded : fold_tensor_names(report.unexpected)) line("", folded);
  }
  return {};
}

Status check_text(const Settings& settings, const EngineSetup& setup) {
  if (settings.serve.skip_tokenizer_init) {
    line("text", "none: token ids in, token ids out");
    return {};
  }
  auto tokenizer = Tokenizer::load(setup.folder);
  if (tokenizer.has_error()) {
    Error error = std::move(tokenizer).error();
    if (error.kind == ErrorKind::kNotFound) error.message += " (--skip-tokenizer-init serves ids without one)";
    return error;
  }
  ChatFormat format = detect_chat_format(setup.config, *tokenizer);
  if (!settings.serve.chat_template.empty()) {
    PLAIT_ASSIGN_OR_RETURN(format, parse_chat_format(settings.serve.chat_template));
  }
  line("text", fmt::format("{} tokens, chat format {}{}", tokenizer->vocab_size(), name_of(format),
                           settings.serve.chat_template.empty() ? " (recognised)" : " (--chat-template)"));
  if (tokenizer->vocab_size() > setup.config.vocab_size) {
    return corrupt(fmt::format("the tokenizer has {} tokens, the model's vocabulary {}", tokenizer->vocab_size(),
                               setup.config.vocab_size));
  }
  return {};
}

// What the parallel flags amount to.
Status check_parallel(const ParallelConfig& asked, const ModelConfig& config) {
  if (asked == ParallelConfig{}) return {};
  const ModelFacts facts = model_facts(config);
  const ParallelVerdict verdict = judge(asked, &facts);
  for (const RuleFinding& finding : verdict.findings)
    line(finding.refused ? "refused" : "forced", fmt::format("{} ({})", finding.explanation, finding.rule));
  if (!verdict.accepted()) return invalid("the parallel flags do not go together");
  line("parallel", to_flags(verdict.config));
  return {};
}

void print_replicas(int replicas, const EngineOptions& own) {
  if (replicas == 1) return;
  line("replicas",
       fmt::format("{} engine processes under plait serve, each with {} of memory and {} core{}; the plan below is "
                   "that of one",
                   replicas, format_bytes(own.memory_bytes), own.threads, own.threads == 1 ? "" : "s"));
}

Status check(const Settings& settings) {
  const EngineOptions& asked = settings.engine();
  line("model", asked.model_path);
  PLAIT_ASSIGN_OR_RETURN(const std::filesystem::path folder, resolve_model_path(asked.model_path));
  line("folder", folder.string());
  PLAIT_ASSIGN_OR_RETURN(const ModelConfig config, read_model_config(folder, asked.config_overrides));
  print_config(config);
  PLAIT_RETURN_IF_ERROR(check_parallel(asked.parallel, config));
  const size_t available = available_memory_bytes();
  const EngineOptions options = options_of_replica(asked, available, usable_cores());
  print_replicas(asked.parallel.replicas(), options);
  PLAIT_ASSIGN_OR_RETURN(const EngineSetup setup, prepare_engine(options));
  line("activations", setup.activation == kernels::Activation::kFloat32 ? "float32" : "bfloat16");
  if (options.dummy_weights) {
    line("tensors", "not looked at: --load-format dummy");
  } else {
    PLAIT_RETURN_IF_ERROR(check_tensors(setup));
  }
  PLAIT_RETURN_IF_ERROR(check_text(settings, setup));
  PLAIT_ASSIGN_OR_RETURN(const MemoryPlan plan, plan_engine_memory(options, setup, available));
  fmt::print("\n{}\n", plan.to_string());
  return {};
}

}  // namespace

int run_check(const Settings& settings) {
  if (settings.check.environment) {
    print_environment();
    if (settings.engine().model_path.empty()) return kExitSuccess;
  }
  const Status status = check(settings);
  if (status.has_error()) {
    line("verdict", "not usable: " + status.error().message);
    return kExitFailure;
  }
  line("verdict", "usable");
  return kExitSuccess;
}

}  // namespace plait::app
