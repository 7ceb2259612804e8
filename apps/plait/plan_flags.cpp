#include "flags.h"

namespace plait::app {
namespace {

constexpr const char* kParallelGroup = "Parallel ranks";
constexpr const char* kPlanGroup = "What to plan and print";
constexpr const char* kKernelGroup = "GPU kernels";
constexpr IntegerRange kRanks{1, 4096};
constexpr std::monostate kAnything;

}  // namespace

void add_parallel_flags(std::vector<Flag>& flags, Settings& settings, FlagWords& words) {
  constexpr Commands kCommands = kPlan | kCompile | kCheck | kServe | kGenerate | kBench;
  constexpr Commands kRunning = kServe | kGenerate, kKernelUsers = kRunning | kPlan | kCompile;
  EngineOptions& engine = settings.serve.engine;
  ParallelConfig& parallel = engine.parallel;
  HostsOptions& hosts = engine.hosts;
  PlanOptions& plan = settings.plan;
  const std::vector<Flag> added = {
      {kCommands, kParallelGroup, "--tp-size,--tp,--tensor-parallel-size", &parallel.tp_size,
       "ranks of one pipeline stage", kRanks},
      {kCommands, kParallelGroup, "--dp-size,--dp,--data-parallel-size", &parallel.dp_size,
       "data-parallel ranks: inside --tp-size with --enable-dp-attention, else whole replicas", kRanks},
      {kServe, kParallelGroup, "--load-balance-method", &words.load_balance_method,
       "which replica gets a request; auto: the one with the fewest requests",
       Words{{"auto", "round_robin", "total_requests", "total_tokens"}}},
      {kCommands, kParallelGroup, "--enable-dp-attention", &parallel.enable_dp_attention,
       "each data-parallel rank attends to its own requests; experts are shared by all", kAnything},
      {kCommands, kParallelGroup, "--enable-dp-lm-head", &parallel.enable_dp_lm_head,
       "the vocabulary is divided inside attention-TP groups", kAnything},
      {kCommands, kParallelGroup, "--ep-size,--ep,--expert-parallel-size", &parallel.ep_size,
       "ranks among which whole experts are divided", kRanks},
      {kCommands, kParallelGroup, "--pp-size,--pipeline-parallel-size", &parallel.pp_size, "pipeline stages", kRanks},
      {kCommands, kParallelGroup, "--attn-cp-size", &parallel.attn_cp_size, "ranks that share a prompt's rows", kRanks},
      {kCommands, kParallelGroup, "--enable-prefill-cp", &parallel.enable_prefill_cp,
       "context parallelism; follows from --attn-cp-size", kAnything},
      {kCommands, kParallelGroup, "--cp-strategy", &words.cp_strategy,
       "how rows are dealt out: in turn, or in 2 * cp blocks",
       Words{{"interleave", "zigzag", "round-robin-split", "in-seq-split"}}},
      {kCommands, kParallelGroup, "--prefill-cp-kv-sharded", &parallel.prefill_cp_kv_sharded,
       "a context rank keeps only its own rows' KV pages", kAnything},
      {kCommands, kParallelGroup, "--moe-dense-tp-size", &words.moe_dense_tp_size,
       "ranks that share a dense layer; 0: all of the stage", IntegerRange{0, 4096}},
      {kCommands, kParallelGroup, "--moe-dp-size", &parallel.moe_dp_size, "copies of all experts inside a stage",
       kRanks},
      {kCommands, kParallelGroup, "--moe-a2a-backend", &words.moe_a2a_backend,
       "how tokens reach experts: all to all ranks and a sum, or dispatch and combine",
       Words{{"none", "a2a", "deepep"}}},
      {kCommands, kParallelGroup, "--deepep-mode", &words.deepep_mode, "form of dispatch",
       Words{{"auto", "normal", "low_latency"}}},
      {kCommands, kParallelGroup, "--enable-flashinfer-allreduce-fusion", &parallel.enable_allreduce_fusion,
       "all-reduce, residual addition and norm as one operation where they follow each other", kAnything},
      {kCommands, kParallelGroup, "--nnodes", &parallel.nnodes, "hosts", kRanks},
      {kCommands, kParallelGroup, "--node-rank", &parallel.node_rank, "this host", IntegerRange{0, 4095}},
      {kCommands, kParallelGroup, "--dist-init-addr", &parallel.dist_init_addr, "HOST:PORT where hosts meet",
       kAnything},
      {kRunning, kParallelGroup, "--dist-timeout", &hosts.dist_timeout, "seconds until all hosts have met",
       IntegerRange{1, 86400}},
      {kRunning, kParallelGroup, "--dist-secret-file", &hosts.secret_file,
       "file whose text hosts must know to be let in; default: none is asked for", kAnything},
      {kRunning, kParallelGroup, "--collective-timeout", &hosts.collective_timeout,
       "seconds that a rank waits for another one once all are ready", IntegerRange{1, 86400}},
      {kServe, kParallelGroup, "--rejoin-timeout", &hosts.rejoin_timeout,
       "seconds until all hosts have met again after one failed", IntegerRange{1, 86400}},
      {kPlan, kPlanGroup, "--step", &words.plan_step, "kind of step", Words{{"prefill", "decode"}}},
      {kPlan, kPlanGroup, "--tokens", &plan.tokens,
       "rows of each data-parallel rank; 0: 2048 for prefill, 64 for decode", IntegerRange{0, 1 << 24}},
      {kPlan, kPlanGroup, "--kernels", &plan.kernels,
       "the kernels that each rank can run on a GPU, instead of what ranks exchange", kAnything},
      {kPlan | kCompile, kKernelGroup, "--device", &plan.device, "the GPU: h200 or another one that is known",
       kAnything},
      {kPlan | kCompile, kKernelGroup, "--arch", &plan.architecture, "what they are compiled for", kAnything},
      {kKernelUsers | kBench, kKernelGroup, "--kernel-table", &engine.kernel_table,
       "what was measured on the GPU, of `plait bench --tune`: a file; none: the cost model alone; auto: the file in "
       "the usual place, if there is one",
       kAnything},
      {kKernelUsers | kBench, kKernelGroup, "--enable-deterministic-inference", &engine.deterministic_kernels,
       "only kernels of one summing order for each product: no result depends on the batch (on CPUs none ever does)",
       kAnything},
      {kPlan | kCompile | kBench, kKernelGroup, "--disaggregation-mode", &words.disaggregation_mode,
       "of a node that only reads prompts, or only decodes", Words{{"null", "prefill", "decode"}}},
      {kServe | kGenerate | kCompile | kBench, kKernelGroup, "--kernel-cache-dir,--cache-dir", &engine.kernel_cache_dir,
       "where compiled ones are kept; default: $XDG_CACHE_HOME/plait/kernels, else ~/.cache/plait/kernels", kAnything},
      {kPlan, kPlanGroup, "--json", &plan.json, "print JSON", kAnything},
      {kPlan, kPlanGroup, "--svg", &plan.svg, "also draw the plan into this file", kAnything},
  };
  flags.insert(flags.end(), added.begin(), added.end());
}

Status interpret_parallel(const FlagWords& words, Settings& settings) {
  ParallelConfig& parallel = settings.serve.engine.parallel;
  if (words.moe_dense_tp_size > 0) parallel.moe_dense_tp_size = words.moe_dense_tp_size;
  if (words.moe_a2a_backend != "none") parallel.moe_a2a_backend = MoeA2a::kAllToAll;
  if (words.deepep_mode == "normal") parallel.deepep_mode = DeepepMode::kNormal;
  if (words.deepep_mode == "low_latency") parallel.deepep_mode = DeepepMode::kLowLatency;
  if (!words.cp_strategy.empty()) {
    const bool zigzag = words.cp_strategy == "zigzag" || words.cp_strategy == "in-seq-split";
    parallel.cp_strategy = zigzag ? CpStrategy::kZigzag : CpStrategy::kInterleave;
  }
  LoadBalance& balance = settings.serve.load_balance;
  if (words.load_balance_method == "round_robin") balance = LoadBalance::kRoundRobin;
  if (words.load_balance_method == "total_tokens") balance = LoadBalance::kTotalTokens;
  settings.plan.decode = words.plan_step == "decode";
  PLAIT_ASSIGN_OR_RETURN(settings.serve.engine.disaggregation, parse_disaggregation_mode(words.disaggregation_mode));
  return {};
}

}  // namespace plait::app
