#include "bench/model_runner.h"

#include <numeric>

#include "base/progress.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/weight_loader.h"
#include "engine/engine_setup.h"

namespace plait {
namespace {

using Clock = std::chrono::steady_clock;

class ExpertCounter : public ForwardObserver {
 public:
  explicit ExpertCounter(int64_t experts) : seen_(static_cast<size_t>(experts)) {}

  void routed_experts(int64_t /*layer*/, std::span<const int32_t> ids, int64_t /*k*/) override {
    std::fill(seen_.begin(), seen_.end(), false);
    for (const int32_t id : ids) {
      if (seen_[static_cast<size_t>(id)]) continue;
      seen_[static_cast<size_t>(id)] = true;
      ++distinct_;
    }
  }
  int64_t distinct() const { return distinct_; }

 private:
  std::vector<bool> seen_;
  int64_t distinct_ = 0;
};

// bfloat16 or float32 numbers between 2^-7 and 2^-6 in size, written in the order of the pages.
void fill_with_small_numbers(ThreadPool& pool, Buffer& buffer, DType dtype) {
  const int64_t element_bytes = size_of(dtype);
  const auto count = static_cast<int64_t>(buffer.size_bytes()) / element_bytes;
  pool.parallel_for(count, 1 << 20, [&](int64_t begin, int64_t end, int) {
    uint32_t state = static_cast<uint32_t>(begin >> 20) * 2654435761u + 1;
    for (int64_t i = begin; i < end; ++i) {
      state = state * 1664525u + 1013904223u;
      const uint32_t bits = (state & 0x80000000u) | 0x3c000000u | ((state >> 8) & 0x007f0000u);
      if (dtype == DType::kBF16) {
        buffer.as<uint16_t>()[i] = static_cast<uint16_t>(bits >> 16);
      } else {
        buffer.as<uint32_t>()[i] = bits;
      }
    }
  });
}

}  // namespace

Result<std::unique_ptr<ModelRunner>> ModelRunner::create(const ModelConfig& config, const EngineOptions& options,
                                                         const std::filesystem::path& checkpoint_folder,
                                                         ThreadPool& pool) {
  PLAIT_ASSIGN_OR_RETURN(const kernels::Activation activation, activation_of(options.dtype, config));
  std::unique_ptr<ModelRunner> runner(new ModelRunner(config, options, activation, pool));
  PLAIT_RETURN_IF_ERROR(runner->load(options, checkpoint_folder));
  return runner;
}

ModelRunner::ModelRunner(const ModelConfig& config, const EngineOptions& options, kernels::Activation activation,
                         ThreadPool& pool)
    : config_(config), pool_(pool), page_tokens_(options.page_tokens) {
  context_.pool = &pool;
  context_.workspace = &workspace_;
  context_.implementation = options.implementation;
  context_.activation = activation;
}

Status ModelRunner::load(const EngineOptions& options, const std::filesystem::path& checkpoint_folder) {
  PLAIT_ASSIGN_OR_RETURN(
      model_, make_model(config_, {.implementation = context_.implementation, .activation = context_.activation}));
  const std::vector<WeightRequest> requests = model_->weight_requests();
  LoadOptions load_options;
  load_options.threads = options.threads;
  load_options.num_hidden_layers = config_.num_hidden_layers;
  ProgressBar bar("Loading weights");
  load_options.progress = [&bar](size_t done, size_t total) { bar.update(done, total); };
  if (checkpoint_folder.empty()) {
    PLAIT_RETURN_IF_ERROR(
        load_dummy_weights(requests, config_.weight_dtype, config_.fp8_block.value_or(0), load_options));
  } else {
    PLAIT_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::open(checkpoint_folder));
    PLAIT_RETURN_IF_ERROR(load_weights(checkpoint, requests, load_options));
  }
  return model_->finish_loading();
}

size_t ModelRunner::kv_bytes(int64_t batch, int64_t context_tokens) const {
  const auto tokens = static_cast<double>(batch * pages_for(context_tokens + 1) * page_tokens_);
  return static_cast<size_t>(tokens * model_->kv_spec().bytes_per_token());
}

void ModelRunner::reserve_kv(int64_t batch, int64_t context_tokens) {
  const KvSpec spec = model_->kv_spec();
  kv_ = {};
  kv_buffers_.clear();
  kv_.page_tokens = page_tokens_;
  kv_.pages = batch * pages_for(context_tokens + 1);
  for (const KvComponent& component : spec.components) {
    const int64_t layer_bytes = kv_.pages * (page_tokens_ / component.tokens_per_row) * component.row_bytes();
    Buffer& buffer = kv_buffers_.emplace_back(static_cast<size_t>(layer_bytes * component.layers));
    fill_with_small_numbers(pool_, buffer, component.dtype);
    kv_.components.push_back({.data = buffer.as<std::byte>(), .layer_stride_bytes = layer_bytes});
  }
  page_order_.resize(static_cast<size_t>(kv_.pages));
  std::iota(page_order_.begin(), page_order_.end(), 0);
  std::shuffle(page_order_.begin(), page_order_.end(), random_);
}

std::vector<int32_t> ModelRunner::random_tokens(int64_t count) {
  std::uniform_int_distribution<int32_t> any(0, static_cast<int32_t>(config_.vocab_size) - 1);
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t& token : tokens) token = any(random_);
  return tokens;
}

TimedStep ModelRunner::prefill(int64_t tokens) {
  if (kv_.pages < pages_for(tokens)) reserve_kv(1, tokens);
  StepBuilder builder(0);
  builder.add(random_tokens(tokens), 0, std::span(page_order_).first(static_cast<size_t>(pages_for(tokens))), tokens,
              1);
  return time(std::move(builder).build());
}

TimedStep ModelRunner::decode(int64_t batch, int64_t context_tokens) {
  const auto pages = static_cast<size_t>(pages_for(context_tokens + 1));
  StepBuilder builder(0);
  for (int64_t i = 0; i < batch; ++i) {
    builder.add(random_tokens(1), context_tokens, std::span(page_order_).subspan(static_cast<size_t>(i) * pages, pages),
                context_tokens, 1);
  }
  return time(std::move(builder).build());
}

TimedStep ModelRunner::time(const Step& step) {
  const auto logit_rows = static_cast<int64_t>(step.logit_rows.size());
  const auto logit_bytes = static_cast<size_t>(logit_rows * config_.vocab_size) * sizeof(float);
  if (logits_.size_bytes() < logit_bytes) logits_ = Buffer(logit_bytes);
  ExpertCounter counter(config_.gate.experts);
  const auto begin = Clock::now();
  model_->forward(context_, step, kv_, Rows(logits_.as<float>(), logit_rows, config_.vocab_size), &counter);
  TimedStep timed;
  timed.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  timed.distinct_experts = counter.distinct();
  timed.cost = model_->cost(step, counter.distinct());
  return timed;
}

}  // namespace plait
