#include "engine/engine.h"

#include "base/assert.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/units.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/tensor_names.h"
#include "checkpoint/weight_loader.h"
#include "engine/available_memory.h"
#include "engine/kv_pool.h"
#include "engine/memory_plan.h"

namespace plait {
namespace {

using kernels::Activation;

// The model and the kernels use the others (model/scratch.h, kernels/context.h).
constexpr int kLogitsSlot = 15;

double gigabytes(size_t bytes) {
  return static_cast<double>(bytes) / (1 << 30);
}

Result<Activation> activation_of(const std::string& dtype, const ModelConfig& config) {
  if (dtype == "float32" || dtype == "float") return Activation::kFloat32;
  if (dtype == "bfloat16") return Activation::kBFloat16;
  // float16 checkpoints run in bfloat16 too: products of float16 would overflow, and the weights keep their bits
  // anyway.
  if (dtype == "auto") return config.weight_dtype == DType::kF32 ? Activation::kFloat32 : Activation::kBFloat16;
  return invalid(fmt::format("--dtype {}: choose auto, bfloat16 or float32", dtype));
}

Result<int64_t> longest_context(int64_t asked, const ModelConfig& config) {
  if (asked <= 0) return config.max_position_embeddings;
  if (asked > config.max_position_embeddings)
    return invalid(fmt::format("--context-length {} is more than the model's max_position_embeddings, {}", asked,
                               config.max_position_embeddings));
  return asked;
}

const char* architecture_of(const ModelConfig& config) {
  return config.family == Family::kDeepseekV2 ? "DeepseekV2ForCausalLM" : "DeepseekV3ForCausalLM";
}

const char* name_of(Activation activation) {
  return activation == Activation::kFloat32 ? "float32" : "bfloat16";
}

Status check_options(const EngineOptions& options) {
  if (!(options.mem_fraction_static > 0 && options.mem_fraction_static <= 1))
    return invalid(fmt::format("--mem-fraction-static {} is not in (0, 1]", options.mem_fraction_static));
  if (options.max_running_requests < 1)
    return invalid(fmt::format("--max-running-requests {} is not positive", options.max_running_requests));
  if (options.chunked_prefill_tokens < 1)
    return invalid(fmt::format("--chunked-prefill-size {} is not positive", options.chunked_prefill_tokens));
  if (options.max_total_tokens < 0)
    return invalid(fmt::format("--max-total-tokens {} is negative", options.max_total_tokens));
  if (options.threads < 0) return invalid(fmt::format("{} threads are too few", options.threads));
  return {};
}

class CpuEngine : public Engine {
 public:
  CpuEngine(const EngineOptions& options, ModelConfig config, Activation activation, int64_t context_tokens)
      : options_(options), config_(std::move(config)), context_tokens_(context_tokens), pool_(options.threads) {
    context_ = {&pool_, &workspace_, options_.implementation, activation};
  }

  // The steps of starting, in order.
  Status start(const std::filesystem::path& folder) {
    const size_t available = available_memory_bytes();
    PLAIT_ASSIGN_OR_RETURN(model_, make_model(config_, {options_.implementation, context_.activation}));
    const std::vector<WeightRequest> requests = model_->weight_requests();
    PLAIT_RETURN_IF_ERROR(plan(available));  // refuses before anything is read
    PLAIT_RETURN_IF_ERROR(load(folder, requests));
    PLAIT_RETURN_IF_ERROR(plan(available));  // with the dtypes that were found
    if (options_.max_total_tokens > plan_.kv_tokens)
      log::warning("--max-total-tokens {} does not fit: {} tokens do", options_.max_total_tokens, plan_.kv_tokens);
    if (context_tokens_ > plan_.kv_tokens) {
      log::warning("sequences are limited to {} tokens by KV memory, not {}", plan_.kv_tokens, context_tokens_);
      context_tokens_ = plan_.kv_tokens;
    }
    kv_.emplace(model_->kv_spec(), plan_.kv_pages, plan_.page_tokens, options_.max_running_requests);
    log::info("KV Cache is allocated. #tokens: {}, KV size: {:.2f} GB", plan_.kv_tokens, gigabytes(plan_.kv_bytes));
    first_touch();
    log::info("{}", plan_.to_string());
    log::info("max_total_num_tokens={}, chunked_prefill_size={}, max_running_requests={}, context_len={}",
              plan_.kv_tokens, options_.chunked_prefill_tokens, options_.max_running_requests, context_tokens_);
    return {};
  }

  std::vector<SampledToken> execute(const Step& step, std::span<const SamplingRow> rows) override {
    PLAIT_ASSERT(rows.size() == step.logit_rows.size(), "one sampling row per wanted row of logits");
    const auto wanted = static_cast<int64_t>(rows.size());
    const Rows logits(workspace_.get_array<float>(kLogitsSlot, wanted * config_.vocab_size), wanted,
                      config_.vocab_size);
    model_->forward(context_, step, kv_->memory(), logits, /*observer=*/nullptr);
    return sample(pool_, logits, rows);
  }

  int64_t kv_pages() const override { return plan_.kv_pages; }
  int64_t page_tokens() const override { return plan_.page_tokens; }
  const ModelConfig& config() const override { return config_; }
  const MemoryPlan& memory_plan() const override { return plan_; }
  Model& model() override { return *model_; }
  ThreadPool& pool() override { return pool_; }
  int64_t context_tokens() const override { return context_tokens_; }

 private:
  Status plan(size_t available) {
    const int64_t rows = std::max(options_.chunked_prefill_tokens, options_.max_running_requests);
    MemoryNeeds needs;
    needs.available_bytes = available;
    needs.weight_bytes = model_->weight_bytes();
    needs.scratch_bytes = model_->scratch_bytes(rows, context_tokens_) +
                          static_cast<size_t>(options_.max_running_requests * config_.vocab_size) * sizeof(float);
    needs.kv = model_->kv_spec();
    needs.page_tokens = options_.page_tokens;
    needs.mem_fraction_static = options_.mem_fraction_static;
    needs.max_total_tokens = options_.max_total_tokens;
    needs.max_running_requests = options_.max_running_requests;
    needs.context_tokens = context_tokens_;
    PLAIT_ASSIGN_OR_RETURN(plan_, plan_memory(needs));
    return {};
  }

  Status load(const std::filesystem::path& folder, std::span<const WeightRequest> requests) {
    const size_t before = available_memory_bytes();
    log::info("Load weight begin. avail mem={:.2f} GB", gigabytes(before));
    LoadReport report;
    {
      ProgressBar bar("Loading weights");
      LoadOptions load_options;
      load_options.threads = options_.threads;
      load_options.num_hidden_layers = config_.num_hidden_layers;
      load_options.progress = [&bar](size_t done, size_t total) { bar.update(done, total); };
      if (options_.dummy_weights) {
        PLAIT_ASSIGN_OR_RETURN(
            report, load_dummy_weights(requests, config_.weight_dtype, config_.fp8_block.value_or(0), load_options));
      } else {
        PLAIT_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::open(folder));
        PLAIT_ASSIGN_OR_RETURN(report, load_weights(checkpoint, requests, load_options));
      }
    }
    PLAIT_RETURN_IF_ERROR(model_->finish_loading());
    const size_t after = available_memory_bytes();
    log::info("Load weight end. type={}, dtype={}, avail mem={:.2f} GB, mem usage={:.2f} GB. {} tensors, {} in {}",
              architecture_of(config_), name_of(context_.activation), gigabytes(after),
              gigabytes(model_->weight_bytes()), report.tensors, format_bytes(report.bytes),
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
  const ModelConfig config_;
  int64_t context_tokens_;
  ThreadPool pool_;
  kernels::Workspace workspace_;
  kernels::Context context_;
  std::unique_ptr<Model> model_;
  MemoryPlan plan_;
  std::optional<KvPool> kv_;
};

}  // namespace

Result<std::unique_ptr<Engine>> Engine::create(const EngineOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  PLAIT_RETURN_IF_ERROR(check_options(options));
  PLAIT_ASSIGN_OR_RETURN(const std::filesystem::path folder, resolve_model_path(options.model_path));
  PLAIT_ASSIGN_OR_RETURN(ModelConfig config, read_model_config(folder, options.config_overrides));
  PLAIT_ASSIGN_OR_RETURN(const Activation activation, activation_of(options.dtype, config));
  PLAIT_ASSIGN_OR_RETURN(const int64_t context_tokens, longest_context(options.context_tokens, config));
  auto engine = std::make_unique<CpuEngine>(options, std::move(config), activation, context_tokens);
  PLAIT_RETURN_IF_ERROR(engine->start(folder));
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
  log::info("Engine is ready after {}.", format_seconds(elapsed.count()));
  return std::unique_ptr<Engine>(std::move(engine));
}

}  // namespace plait
