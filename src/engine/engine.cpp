#include "engine/engine.h"

#include "base/assert.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/units.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/tensor_names.h"
#include "checkpoint/weight_loader.h"
#include "engine/available_memory.h"
#include "engine/engine_setup.h"
#include "engine/rank_team.h"

namespace plait {
namespace {

using kernels::Activation;

double gigabytes(size_t bytes) {
  return static_cast<double>(bytes) / (1 << 30);
}

const char* architecture_of(const ModelConfig& config) {
  return config.family == Family::kDeepseekV2 ? "DeepseekV2ForCausalLM" : "DeepseekV3ForCausalLM";
}

const char* name_of(Activation activation) {
  return activation == Activation::kFloat32 ? "float32" : "bfloat16";
}

class CpuEngine : public Engine {
 public:
  CpuEngine(const EngineOptions& options, EngineSetup setup) : options_(options), setup_(std::move(setup)) {}

  // The steps of starting, in order.
  Status start() {
    const size_t available = available_memory_bytes();
    std::vector<std::vector<WeightRequest>> of_ranks;
    for (const auto& model : setup_.models) of_ranks.push_back(model->weight_requests());
    PLAIT_RETURN_IF_ERROR(plan_engine_memory(options_, setup_, available));  // refuses before anything is read
    PLAIT_RETURN_IF_ERROR(load(merge_requests(std::move(of_ranks))));
    PLAIT_ASSIGN_OR_RETURN(plan_, plan_engine_memory(options_, setup_, available));  // with the dtypes that were found
    if (options_.max_total_tokens > plan_.kv_tokens)
      log::warning("--max-total-tokens {} does not fit: {} tokens do", options_.max_total_tokens, plan_.kv_tokens);
    if (setup_.context_tokens > plan_.kv_tokens) {
      log::warning("sequences are limited to {} tokens by KV memory, not {}", plan_.kv_tokens, setup_.context_tokens);
      setup_.context_tokens = plan_.kv_tokens;
    }
    PLAIT_RETURN_IF_ERROR(start_ranks());
    first_touch();
    log::info("{}", plan_.to_string());
    log::info("max_total_num_tokens={}, chunked_prefill_size={}, max_running_requests={}, context_len={}",
              plan_.kv_tokens, options_.chunked_prefill_tokens, options_.max_running_requests, setup_.context_tokens);
    return {};
  }

  std::vector<SampledToken> execute(const Step& step, std::span<const SamplingRow> rows) override {
    const StepCall call{&step, rows};
    return std::move(execute({&call, 1}).front());
  }

  std::vector<std::vector<SampledToken>> execute(std::span<const StepCall> of_dp_ranks) override {
    std::vector<const Step*> steps;
    for (const StepCall& call : of_dp_ranks) {
      PLAIT_ASSERT(call.rows.size() == call.step->logit_rows.size(), "one sampling row per wanted row of logits");
      steps.push_back(call.step);
    }
    std::vector<std::vector<SampledToken>> sampled(of_dp_ranks.size());
    const Status done = team_->run(steps, [&](int dp, ThreadPool& pool, Rows logits) {
      sampled[static_cast<size_t>(dp)] = sample(pool, logits, of_dp_ranks[static_cast<size_t>(dp)].rows);
    });
    if (done.has_error()) throw std::runtime_error(done.error().message);
    return sampled;
  }

  int dp_ranks() const override { return setup_.parallel.attn_dp_size(); }
  int64_t kv_pages() const override { return plan_.kv_pages; }
  int64_t page_tokens() const override { return plan_.page_tokens; }
  const ModelConfig& config() const override { return setup_.config; }
  const MemoryPlan& memory_plan() const override { return plan_; }
  Model& model() override { return team_->model_of(0); }
  int64_t context_tokens() const override { return setup_.context_tokens; }

 private:
  // The models move to their ranks.
  Status start_ranks() {
    const TeamOptions team{.parallel = setup_.parallel,
                           .model = {options_.implementation, setup_.activation, {}},
                           .threads = options_.threads,
                           .low_latency_tokens = std::max<int64_t>(options_.max_running_requests, 1)};
    PLAIT_ASSIGN_OR_RETURN(team_, RankTeam::create(setup_.config, team, std::exchange(setup_.models, {})));
    team_->allocate_kv(plan_.kv_pages, plan_.page_tokens, options_.max_running_requests);
    log::info("KV Cache is allocated. #tokens: {}, KV size: {:.2f} GB", plan_.kv_tokens, gigabytes(plan_.kv_bytes));
    if (team_->topology().world() > 1) log::info("{} ranks: {}", team_->topology().world(), to_flags(setup_.parallel));
    return {};
  }

  Status load(std::span<const WeightRequest> requests) {
    const size_t before = available_memory_bytes();
    log::info("Load weight begin. avail mem={:.2f} GB", gigabytes(before));
    LoadReport report;
    {
      ProgressBar bar("Loading weights");
      LoadOptions load_options;
      load_options.threads = options_.threads;
      load_options.num_hidden_layers = setup_.config.num_hidden_layers;
      load_options.progress = [&bar](size_t done, size_t total) { bar.update(done, total); };
      if (options_.dummy_weights) {
        PLAIT_ASSIGN_OR_RETURN(report, load_dummy_weights(requests, setup_.config.weight_dtype,
                                                          setup_.config.fp8_block.value_or(0), load_options));
      } else {
        PLAIT_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::open(setup_.folder));
        PLAIT_ASSIGN_OR_RETURN(report, load_weights(checkpoint, requests, load_options));
      }
    }
    size_t weight_bytes = 0;
    for (const auto& model : setup_.models) {
      PLAIT_RETURN_IF_ERROR(model->finish_loading());
      weight_bytes += model->weight_bytes();
    }
    const size_t after = available_memory_bytes();
    log::info("Load weight end. type={}, dtype={}, avail mem={:.2f} GB, mem usage={:.2f} GB. {} tensors, {} in {}",
              architecture_of(setup_.config), name_of(setup_.activation), gigabytes(after), gigabytes(weight_bytes),
              report.tensors, format_bytes(report.bytes), format_seconds(report.seconds));
    if (!report.set_aside.empty())
      log::info("{} tensors are set aside: multi-token prediction and rotary tables are not used",
                report.set_aside.size());
    for (const std::string& names : fold_tensor_names(report.unexpected))
      log::warning("unexpected in the checkpoint and ignored: {}", names);
    return {};
  }

  // A small prefill and a decode step: whatever an operation does at its first call is not left to the first request.
  void first_touch() {
    const int64_t tokens = std::min(2 * plan_.page_tokens, plan_.kv_tokens) - 1;
    std::vector<int32_t> pages{0};
    if (plan_.kv_pages > 1) pages.push_back(1);
    const std::vector<int32_t> prompt(std::max<int64_t>(tokens, 1), 0);
    run_untracked(prompt, 0, pages);
    if (tokens > 0) run_untracked(std::span(prompt).first(1), tokens, pages);
  }

  void run_untracked(std::span<const int32_t> token_ids, int64_t first_position, std::span<const int32_t> pages) {
    StepBuilder builder(0);
    const int64_t prompt_tokens = first_position == 0 ? static_cast<int64_t>(token_ids.size()) : first_position;
    builder.add(token_ids, first_position, pages, /*expanded_until=*/prompt_tokens, /*logit_count=*/1);
    const Step step = std::move(builder).build();
    const SamplingParams params{.temperature = 0};
    const SamplingRow row{.params = &params};
    const std::vector<StepCall> of_dp_ranks(static_cast<size_t>(dp_ranks()), {&step, {&row, 1}});
    execute(of_dp_ranks);
  }

  const EngineOptions options_;
  EngineSetup setup_;
  MemoryPlan plan_;
  std::unique_ptr<RankTeam> team_;
};

}  // namespace

std::vector<std::vector<SampledToken>> StepExecutor::execute(std::span<const StepCall> of_dp_ranks) {
  PLAIT_ASSERT(of_dp_ranks.size() == 1, "several data-parallel ranks need an executor for them");
  return {execute(*of_dp_ranks.front().step, of_dp_ranks.front().rows)};
}

Result<std::unique_ptr<Engine>> Engine::create(const EngineOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  PLAIT_ASSIGN_OR_RETURN(EngineSetup setup, prepare_engine(options));
  auto engine = std::make_unique<CpuEngine>(options, std::move(setup));
  PLAIT_RETURN_IF_ERROR(engine->start());
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
  log::info("Engine is ready after {}.", format_seconds(elapsed.count()));
  return std::unique_ptr<Engine>(std::move(engine));
}

}  // namespace plait
