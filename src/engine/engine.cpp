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
#include "engine/kv_pool.h"

namespace plait {
namespace {

using kernels::Activation;

// The model and the kernels use the others (model/scratch.h, kernels/context.h).
constexpr int kLogitsSlot = 15;

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
  CpuEngine(const EngineOptions& options, EngineSetup setup)
      : options_(options), setup_(std::move(setup)), pool_(options.threads) {
    context_ = {&pool_, &workspace_, options_.implementation, setup_.activation};
  }

  // The steps of starting, in order.
  Status start() {
    const size_t available = available_memory_bytes();
    const std::vector<WeightRequest> requests = model().weight_requests();
    PLAIT_RETURN_IF_ERROR(plan_engine_memory(options_, setup_, available));  // refuses before anything is read
    PLAIT_RETURN_IF_ERROR(load(requests));
    PLAIT_ASSIGN_OR_RETURN(plan_, plan_engine_memory(options_, setup_, available));  // with the dtypes that were found
    if (options_.max_total_tokens > plan_.kv_tokens)
      log::warning("--max-total-tokens {} does not fit: {} tokens do", options_.max_total_tokens, plan_.kv_tokens);
    if (setup_.context_tokens > plan_.kv_tokens) {
      log::warning("sequences are limited to {} tokens by KV memory, not {}", plan_.kv_tokens, setup_.context_tokens);
      setup_.context_tokens = plan_.kv_tokens;
    }
    kv_.emplace(setup_.model->kv_spec(), plan_.kv_pages, plan_.page_tokens, options_.max_running_requests);
    log::info("KV Cache is allocated. #tokens: {}, KV size: {:.2f} GB", plan_.kv_tokens, gigabytes(plan_.kv_bytes));
    first_touch();
    log::info("{}", plan_.to_string());
    log::info("max_total_num_tokens={}, chunked_prefill_size={}, max_running_requests={}, context_len={}",
              plan_.kv_tokens, options_.chunked_prefill_tokens, options_.max_running_requests, setup_.context_tokens);
    return {};
  }

  std::vector<SampledToken> execute(const Step& step, std::span<const SamplingRow> rows) override {
    PLAIT_ASSERT(rows.size() == step.logit_rows.size(), "one sampling row per wanted row of logits");
    const auto wanted = static_cast<int64_t>(rows.size());
    const Rows logits(workspace_.get_array<float>(kLogitsSlot, wanted * setup_.config.vocab_size), wanted,
                      setup_.config.vocab_size);
    setup_.model->forward(context_, step, kv_->memory(), logits, /*observer=*/nullptr);
    return sample(pool_, logits, rows);
  }

  int64_t kv_pages() const override { return plan_.kv_pages; }
  int64_t page_tokens() const override { return plan_.page_tokens; }
  const ModelConfig& config() const override { return setup_.config; }
  const MemoryPlan& memory_plan() const override { return plan_; }
  Model& model() override { return *setup_.model; }
  ThreadPool& pool() override { return pool_; }
  int64_t context_tokens() const override { return setup_.context_tokens; }

 private:
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
    PLAIT_RETURN_IF_ERROR(setup_.model->finish_loading());
    const size_t after = available_memory_bytes();
    log::info("Load weight end. type={}, dtype={}, avail mem={:.2f} GB, mem usage={:.2f} GB. {} tensors, {} in {}",
              architecture_of(setup_.config), name_of(context_.activation), gigabytes(after),
              gigabytes(setup_.model->weight_bytes()), report.tensors, format_bytes(report.bytes),
              format_seconds(report.seconds));
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
    const SamplingParams params{.temperature = 0};
    const SamplingRow row{.params = &params};
    execute(std::move(builder).build(), {&row, 1});
  }

  const EngineOptions options_;
  EngineSetup setup_;
  ThreadPool pool_;
  kernels::Workspace workspace_;
  kernels::Context context_;
  MemoryPlan plan_;
  std::optional<KvPool> kv_;
};

}  // namespace

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
