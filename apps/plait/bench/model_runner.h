// A model with KV memory, driven step by step without scheduler or server: what `plait bench` times.
//
// Owns the weights and the KV memory; borrows the thread pool. All calls from the thread that owns the pool.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "base/error.h"
#include "engine/engine.h"
#include "model/model.h"

namespace plait {

struct TimedStep {
  double seconds = 0;
  int64_t distinct_experts = 0;  // that got a row, summed over layers
  StepCost cost;
};

class ModelRunner {
 public:
  // `config` decides the shape. Weights come from `checkpoint_folder`, or are random where it is empty.
  static Result<std::unique_ptr<ModelRunner>> create(const ModelConfig& config, const EngineOptions& options,
                                                     const std::filesystem::path& checkpoint_folder, ThreadPool& pool);

  const Model& model() const { return *model_; }
  kernels::Activation activation() const { return context_.activation; }
  // Bytes of KV memory that `batch` sequences of `context_tokens` need.
  size_t kv_bytes(int64_t batch, int64_t context_tokens) const;
  // Makes room for them, filled with small random numbers: what lies in the cache does not change the time it takes to
  // read, as long as it was written.
  void reserve_kv(int64_t batch, int64_t context_tokens);

  // One prompt of `tokens` random tokens from an empty cache.
  TimedStep prefill(int64_t tokens);
  // One new random token for each of `batch` sequences that have `context_tokens` already. Needs reserve_kv.
  TimedStep decode(int64_t batch, int64_t context_tokens);

 private:
  ModelRunner(const ModelConfig& config, const EngineOptions& options, kernels::Activation activation,
              ThreadPool& pool);
  Status load(const EngineOptions& options, const std::filesystem::path& checkpoint_folder);
  std::vector<int32_t> random_tokens(int64_t count);
  int64_t pages_for(int64_t tokens) const { return (tokens + page_tokens_ - 1) / page_tokens_; }
  TimedStep time(const Step& step);

  const ModelConfig config_;
  ThreadPool& pool_;
  kernels::Workspace workspace_;
  kernels::Context context_;
  std::unique_ptr<Model> model_;
  int64_t page_tokens_;
  std::vector<Buffer> kv_buffers_;  // one per component
  KvMemory kv_;
  std::vector<int32_t> page_order_;  // shuffled, as in a pool that has been in use
  Buffer logits_;
  std::mt19937 random_{1};
};

}  // namespace plait
