// Runs steps of one model over KV memory of its own and keeps everything that a test may want to compare.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/context.h"
#include "model/model.h"
#include "tensor/buffer.h"
#include "tests/model/tensor_set.h"

namespace plait::testing {

// What a step, or several in a row, computed.
struct Recorded {
  int64_t vocab = 0;
  std::vector<float> logits;                       // [wanted rows, vocab]
  std::map<int64_t, std::vector<int32_t>> routed;  // layer -> [rows, k] expert ids
  std::map<int64_t, std::vector<float>> hidden;    // layer -> [rows, hidden]; layers: after the final norm

  int64_t rows() const { return static_cast<int64_t>(logits.size()) / vocab; }
  std::span<const float> row(int64_t i) const { return {logits.data() + i * vocab, static_cast<size_t>(vocab)}; }
  void append(const Recorded& next);
};

// Lower id first if two are equal.
int32_t argmax(std::span<const float> logits);

struct TestSequence {
  std::vector<int32_t> pages;
  int64_t cached_tokens = 0;
};

class ModelRunner {
 public:
  ModelRunner(const ModelConfig& config, const TensorSet& weights, const ModelOptions& options, int64_t page_tokens = 4,
              int64_t pages = 256, int threads = 1);

  Model& model() { return *model_; }
  int64_t page_tokens() const { return kv_.page_tokens; }
  size_t scratch_bytes() const { return workspace_.size_bytes(); }
  const kernels::Context& context() const { return context_; }
  const KvMemory& kv() const { return kv_; }

  // Gives `sequence` pages for `tokens` positions. Pages of one sequence are scattered over the pool.
  void reserve(TestSequence& sequence, int64_t tokens);
  void release(TestSequence& sequence);
  void fill_page_with_zeros(int32_t page);

  Recorded run(const Step& step);
  // The next tokens of one sequence in one step; logits of the last `logit_count` (-1: of all).
  Recorded append(TestSequence& sequence, std::span<const int32_t> tokens, int64_t expanded_until,
                  int64_t logit_count = -1);
  // The same in steps of `chunk` tokens.
  Recorded append_in_chunks(TestSequence& sequence, std::span<const int32_t> tokens, int64_t chunk,
                            int64_t expanded_until);
  // A prompt in one step, then up to `count` tokens, the last one maybe `stop_id`.
  std::vector<int32_t> greedy(std::span<const int32_t> prompt, int64_t count, int32_t stop_id = -1);

 private:
  std::unique_ptr<Model> model_;
  ThreadPool pool_;
  kernels::Workspace workspace_;
  kernels::Context context_;
  std::vector<Buffer> kv_buffers_;
  KvMemory kv_;
  std::vector<int32_t> free_pages_;
  uint64_t steps_ = 0;
};

}  // namespace plait::testing
