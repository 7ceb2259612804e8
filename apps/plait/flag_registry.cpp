#include "flags.h"

namespace plait::app {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 31;
constexpr Commands kConfigCommands = kServe | kGenerate | kBench | kCheck | kPlan | kCompile;
constexpr Commands kEngineCommands = kServe | kGenerate | kBench | kCheck;
constexpr Commands kModelCommands = kServe | kGenerate | kCheck;

constexpr std::monostate kAnything;

constexpr const char* kModelGroup = "Model";
constexpr const char* kServerGroup = "Server";
constexpr const char* kMemoryGroup = "Memory and batching";
constexpr const char* kFaultGroup = "Deadlines and faults";
constexpr const char* kMachineGroup = "Machine";
constexpr const char* kLogGroup = "Logging and metrics";
constexpr const char* kPromptGroup = "Prompt";
constexpr const char* kSamplingGroup = "Sampling";
constexpr const char* kMeasureGroup = "What to measure";

void add_bench_flags(std::vector<Flag>& flags, BenchOptions& bench, FlagWords& words) {
  flags.insert(
      flags.end(),
      {
          {kBench, kMeasureGroup, "--machine", &bench.machine_only, "only the machine: memory bandwidth, matrix peak",
           kAnything},
          {kBench, kMeasureGroup, "--server", &bench.server,
           "the cost of serving: time to the first token from start, and what HTTP, text and scheduling add to a token",
           kAnything},
          {kBench, kMeasureGroup, "--parallel", &bench.parallel,
           "two ranks in every way against one, planned against measured bytes, and how long planning takes",
           kAnything},
          {kBench, kMeasureGroup, "--kernels", &bench.kernels,
           "products and quantisers of a model's ranks on a GPU: time, share of the ceiling and the kernel chosen; "
           "without --model-path: DeepSeek-V3, --tp-size 8 --dp-size 8 --ep-size 8",
           kAnything},
          {kBench, kMeasureGroup, "--tune", &bench.tune,
           "which of their kernels are the fastest on this GPU, as a table for --kernel-table; goes on where an "
           "earlier one stopped",
           kAnything},
          {kBench, kMeasureGroup, "--rows", &words.bench_rows,
           "with --kernels: row counts, separated by commas; those that can come are measured", kAnything},
          {kBench, kMeasureGroup, "--sizes", &words.bench_sizes,
           "with --kernels: the model's, or those of DeepGEMM's tests in the formats of --weights",
           Words{{"model", "deepgemm"}}},
          {kBench, kMeasureGroup, "--all", &bench.all_kernels,
           "with --kernels: every configuration, the best one, and how far the chosen one is from it", kAnything},
          {kBench, kMeasureGroup, "--only", &bench.only_kernels,
           "with --kernels: what has this text in the matrix', the product's or the kernel's name", kAnything},
          {kBench, kMeasureGroup, "--output", &bench.output,
           "with --tune: the table; default: $XDG_CACHE_HOME/plait/kernel-tables/DEVICE.json, where it is found",
           kAnything},
          {kBench, kMeasureGroup, "--weights", &words.bench_weights,
           "weight formats of the built-in model: bf16, fp8 or both, separated by commas", kAnything},
          {kBench, kMeasureGroup, "--layers", &bench.layers,
           "layers of the built-in model (DeepSeek-V2-Lite's widths); 0: as many as memory holds, at most 8",
           IntegerRange{0, 1000}},
          {kBench, kMeasureGroup, "--prefill", &words.bench_prefill, "prompt lengths in tokens", kAnything},
          {kBench, kMeasureGroup, "--batch", &words.bench_batch, "sequences per decode step", kAnything},
          {kBench, kMeasureGroup, "--context", &words.bench_context, "tokens that each decoding sequence already has",
           kAnything},
          {kBench, kMeasureGroup, "--seconds", &words.bench_seconds,
           "time to spend on each row, or with --tune on all; 0: 2, with --tune 300", RealRange{0, 86400}},
          {kBench, kMeasureGroup, "--format", &words.bench_format, "how to print", Words{{"table", "lines", "json"}}},
      });
}

}  // namespace

std::vector<Flag> flag_registry(Settings& settings, FlagWords& words) {
  ServeOptions& serve = settings.serve;
  EngineOptions& engine = serve.engine;
  SchedulerOptions& scheduler = serve.scheduler;
  GenerateOptions& generate = settings.generate;
  SamplingParams& sampling = generate.sampling;

  std::vector<Flag> flags = {
      {kConfigCommands, kModelGroup, "--model-path,--model", &engine.model_path,
       "checkpoint folder, or a hub id that is in the local hub cache", kAnything},
      {kEngineCommands, kModelGroup, "--load-format", &words.load_format,
       "dummy: reproducible random weights, only config.json is read", Words{{"auto", "safetensors", "dummy"}}},
      {kEngineCommands, kModelGroup, "--dtype", &engine.dtype, "type of activations and KV cache; auto is bfloat16",
       Words{{"auto", "bfloat16", "float32"}}},
      {kConfigCommands, kModelGroup, "--json-model-override-args", &words.json_model_override_args,
       "JSON object whose fields replace those of config.json", kAnything},
      {kModelCommands, kModelGroup, "--chat-template", &serve.chat_template,
       "deepseek-v2, deepseek-v2.5, deepseek-v3, deepseek-r1, deepseek-v3.1 or kimi-k2; default: recognised",
       kAnything},
      {kModelCommands, kModelGroup, "--skip-tokenizer-init", &serve.skip_tokenizer_init,
       "no tokenizer: token ids in, token ids out", kAnything},
      {kModelCommands, kModelGroup, "--context-length", &engine.context_tokens,
       "longest prompt and output in tokens; 0: what config.json says", IntegerRange{0, kMostTokens}},

      {kServe, kServerGroup, "--host", &serve.host, "address to listen on", kAnything},
      {kServe, kServerGroup, "--port", &serve.port, "TCP port; 0: any free one, which the log names",
       IntegerRange{0, 65535}},
      {kServe, kServerGroup, "--api-key", &serve.api_key, "key that every route but /health asks for", kAnything},
      {kServe, kServerGroup, "--served-model-name", &serve.served_model_name,
       "name in /v1/models; default: --model-path", kAnything},
      {kServe, kServerGroup, "--stream-output,--incremental-streaming-output", &serve.stream_output,
       "/generate streams new text only, not the whole text so far", kAnything},

      {kEngineCommands, kMemoryGroup, "--mem-fraction-static", &engine.mem_fraction_static,
       "share of the available memory for weights and KV cache", RealRange{0.01, 1.0}},
      {kModelCommands, kMemoryGroup, "--max-total-tokens", &engine.max_total_tokens,
       "tokens in the KV cache; 0: from memory", IntegerRange{0, int64_t{1} << 40}},
      {kEngineCommands, kMemoryGroup, "--page-size", &engine.page_tokens, "tokens in a page of KV cache",
       IntegerRange{1, 4096}},
      {kServe | kCheck | kPlan | kCompile | kBench, kMemoryGroup, "--max-running-requests",
       &engine.max_running_requests, "requests in one step at most", IntegerRange{1, 1 << 20}},
      {kServe, kMemoryGroup, "--max-queued-requests", &scheduler.max_queued_requests,
       "requests beyond --max-running-requests that may wait; more are refused with 503; 0: no limit",
       IntegerRange{0, kMostTokens}},
      {kModelCommands | kPlan | kCompile | kBench, kMemoryGroup, "--chunked-prefill-size",
       &engine.chunked_prefill_tokens, "prompt tokens in one step at most", IntegerRange{1, 1 << 20}},
      {kServe, kMemoryGroup, "--disable-radix-cache", &words.disable_radix_cache,
       "do not reuse the KV cache of shared prompt prefixes", kAnything},
      {kServe | kCheck, kMemoryGroup, "--enable-return-routed-experts", &engine.keep_routed_experts,
       "keep beside the KV cache which experts each token was routed to, for requests that ask for them", kAnything},
      {kServe | kGenerate, kMemoryGroup, "--disable-overlap-schedule", &words.disable_overlap_schedule,
       "make each step after the one before it is done", kAnything},
      {kServe, kMemoryGroup, "--schedule-policy", &words.schedule_policy, "order of waiting requests",
       Words{{"fcfs", "priority"}}},

      {kServe, kFaultGroup, "--request-timeout", &serve.default_request_timeout,
       "seconds until a request fails, waiting included; 0: never", IntegerRange{0, kMostTokens}},
      {kServe, kFaultGroup, "--request-read-timeout", &serve.request_read_timeout,
       "seconds in which a client must have sent its request", IntegerRange{1, 86400}},
      {kServe, kFaultGroup, "--drain-timeout", &serve.drain_timeout,
       "seconds that running requests get to finish after SIGTERM", IntegerRange{0, 86400}},
      {kServe, kFaultGroup, "--watchdog-timeout", &serve.watchdog_timeout,
       "seconds without a step while requests run until the engine is restarted", IntegerRange{1, 86400}},
      {kServe, kFaultGroup, "--max-engine-restarts", &serve.max_engine_restarts,
       "restarts of the engine within the window; one more ends the server", IntegerRange{0, 1000}},
      {kServe, kFaultGroup, "--engine-restart-window", &serve.engine_restart_window, "that window, in seconds",
       IntegerRange{1, 86400}},
      {kServe, kFaultGroup, "--max-body-bytes", &serve.max_body_bytes, "largest request body",
       IntegerRange{1024, int64_t{1} << 32}},

      {kEngineCommands | kCompile, kMachineGroup, "--threads", &engine.threads,
       "threads of all ranks and replicas together; 0: one per usable core", IntegerRange{0, 4096}},
      {kModelCommands, kMachineGroup, "--kernels", &words.kernels,
       "fast: SIMD for this machine; reference: plain loops in float32", Words{{"fast", "reference"}}},
      {kBench, kMachineGroup, "--implementation", &words.kernels,
       "what --kernels is to `serve`: fast: SIMD for this machine; reference: plain loops in float32",
       Words{{"fast", "reference"}}},

      {kConfigCommands, kLogGroup, "--log-level", &serve.log_level, "least severe lines to print",
       Words{{"debug", "info", "warning", "error", "critical"}}},
      {kServe, kLogGroup, "--log-requests", &serve.log_requests, "a line per request at its start and end", kAnything},
      {kServe, kLogGroup, "--enable-metrics", &serve.enable_metrics, "/metrics; on unless --disable-metrics",
       kAnything},
      {kServe, kLogGroup, "--disable-metrics", &words.disable_metrics, "no /metrics", kAnything},

      {kGenerate, kPromptGroup, "--prompt", &generate.prompt, "text to continue; -: read it from standard input",
       kAnything},
      {kGenerate, kPromptGroup, "--chat", &generate.chat, "the prompt is a user's message in the model's chat format",
       kAnything},
      {kGenerate, kPromptGroup, "--system", &generate.system, "system message before it, with --chat", kAnything},
      {kGenerate, kPromptGroup, "--input-ids", &generate.input_ids,
       "token ids instead of text, separated by commas; with --skip-tokenizer-init ids come out as well", kAnything},
      {kGenerate, kSamplingGroup, "--max-new-tokens", &sampling.max_new_tokens, "tokens to generate at most",
       IntegerRange{1, kMostTokens}},
      {kGenerate, kSamplingGroup, "--min-new-tokens", &sampling.min_new_tokens, "tokens before the end may come",
       IntegerRange{0, kMostTokens}},
      {kGenerate, kSamplingGroup, "--temperature", &sampling.temperature, "0: always the likeliest token",
       RealRange{0, 100}},
      {kGenerate, kSamplingGroup, "--top-p", &sampling.top_p, "smallest set of tokens with this probability",
       RealRange{1e-6, 1}},
      {kGenerate, kSamplingGroup, "--top-k", &sampling.top_k, "likeliest tokens only; -1: all",
       IntegerRange{-1, 1 << 30}},
      {kGenerate, kSamplingGroup, "--min-p", &sampling.min_p, "least probability, relative to the likeliest token",
       RealRange{0, 1}},
      {kGenerate, kSamplingGroup, "--repetition-penalty", &sampling.repetition_penalty, "1: none", RealRange{1e-6, 2}},
      {kGenerate, kSamplingGroup, "--seed,--random-seed", &words.seed, "same seed, same text; default: drawn",
       kAnything},
      {kGenerate, kSamplingGroup, "--stop", &generate.stop, "text that ends the output; may be repeated", kAnything},
      {kGenerate, kSamplingGroup, "--ignore-eos", &sampling.ignore_eos, "go on after the end-of-sequence token",
       kAnything},

      {kCheck, "Other", "--env", &settings.check.environment, "print the environment variables that plait reads",
       kAnything},
  };
  add_bench_flags(flags, settings.bench, words);
  add_parallel_flags(flags, settings, words);
  return flags;
}

}  // namespace plait::app
