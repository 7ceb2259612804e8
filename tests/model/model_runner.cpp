#include "tests/model/model_runner.h"

#include "base/assert.h"

namespace plait::testing {
namespace {

class Recorder : public ForwardObserver {
 public:
  Recorder(int64_t layers, Recorded& recorded) : layers_(layers), recorded_(recorded) {}
  void layer_input(int64_t layer, ConstRows hidden) override { copy(hidden, recorded_.hidden[layer]); }
  void final_hidden(ConstRows hidden) override { copy(hidden, recorded_.hidden[layers_]); }
  void routed_experts(int64_t layer, std::span<const int32_t> ids, int64_t) override {
    recorded_.routed[layer].assign(ids.begin(), ids.end());
  }

 private:
  static void copy(ConstRows rows, std::vector<float>& to) {
    to.clear();
    for (int64_t i = 0; i < rows.rows; ++i) to.insert(to.end(), rows.row(i), rows.row(i) + rows.cols);
  }
  const int64_t layers_;
  Recorded& recorded_;
};

}  // namespace

void Recorded::append(const Recorded& next) {
  vocab = next.vocab;
  logits.insert(logits.end(), next.logits.begin(), next.logits.end());
  for (const auto& [layer, ids] : next.routed) routed[layer].insert(routed[layer].end(), ids.begin(), ids.end());
  for (const auto& [layer, rows] : next.hidden) hidden[layer].insert(hidden[layer].end(), rows.begin(), rows.end());
}

int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

ModelRunner::ModelRunner(const ModelConfig& config, const TensorSet& weights, const ModelOptions& options,
                         int64_t page_tokens, int64_t pages, int threads)
    : pool_(threads) {
  model_ = make_model(config, options).value();
  const Status loaded = weights.load(*model_);
  PLAIT_ASSERT(!loaded.has_error(), loaded.has_error() ? loaded.error().message : "");
  context_ = {&pool_, &workspace_, options.implementation, options.activation};
  kv_.page_tokens = page_tokens;
  kv_.pages = pages;
  for (const KvComponent& component : model_->kv_spec().components) {
    const int64_t layer_bytes = pages * page_tokens / component.tokens_per_row * component.row_bytes();
    Buffer& buffer = kv_buffers_.emplace_back(component.layers * layer_bytes);
    std::memset(buffer.data(), 0xff, buffer.size_bytes());  // NaN: what was never stored must not be read
    kv_.components.push_back({buffer.as<std::byte>(), layer_bytes});
  }
  // A fixed permutation: 37 is coprime to the powers of two that tests ask for.
  for (int64_t i = 0; i < pages; ++i) free_pages_.push_back(static_cast<int32_t>(i * 37 % pages));
}

void ModelRunner::reserve(TestSequence& sequence, int64_t tokens) {
  while (static_cast<int64_t>(sequence.pages.size()) * kv_.page_tokens < tokens) {
    PLAIT_ASSERT(!free_pages_.empty(), "the test needs more pages");
    sequence.pages.push_back(free_pages_.back());
    free_pages_.pop_back();
  }
}

void ModelRunner::release(TestSequence& sequence) {
  free_pages_.insert(free_pages_.end(), sequence.pages.begin(), sequence.pages.end());
  sequence = {};
}

void ModelRunner::fill_page_with_zeros(int32_t page) {
  const KvSpec spec = model_->kv_spec();
  for (size_t i = 0; i < spec.components.size(); ++i) {
    const int64_t page_bytes = kv_.components[i].layer_stride_bytes / kv_.pages;
    for (int64_t layer = 0; layer < spec.components[i].layers; ++layer)
      std::memset(kv_.components[i].data + layer * kv_.components[i].layer_stride_bytes + page * page_bytes, 0,
                  page_bytes);
  }
}

Recorded ModelRunner::run(const Step& step) {
  Recorded recorded;
  recorded.vocab = model_->config().vocab_size;
  const auto wanted = static_cast<int64_t>(step.logit_rows.size());
  recorded.logits.assign(wanted * recorded.vocab, std::numeric_limits<float>::quiet_NaN());
  Recorder recorder(model_->config().num_hidden_layers, recorded);
  model_->forward(context_, step, kv_, Rows(recorded.logits.data(), wanted, recorded.vocab), &recorder);
  return recorded;
}

Recorded ModelRunner::append(TestSequence& sequence, std::span<const int32_t> tokens, int64_t expanded_until,
                             int64_t logit_count) {
  const auto count = static_cast<int64_t>(tokens.size());
  reserve(sequence, sequence.cached_tokens + count);
  StepBuilder builder(steps_++);
  builder.add(tokens, sequence.cached_tokens, sequence.pages, expanded_until, logit_count < 0 ? count : logit_count);
  sequence.cached_tokens += count;
  return run(std::move(builder).build());
}

Recorded ModelRunner::append_in_chunks(TestSequence& sequence, std::span<const int32_t> tokens, int64_t chunk,
                                       int64_t expanded_until) {
  Recorded recorded;
  for (size_t begin = 0; begin < tokens.size(); begin += chunk)
    recorded.append(
        append(sequence, tokens.subspan(begin, std::min<size_t>(chunk, tokens.size() - begin)), expanded_until));
  return recorded;
}

std::vector<int32_t> ModelRunner::greedy(std::span<const int32_t> prompt, int64_t count, int32_t stop_id) {
  TestSequence sequence;
  const auto prompt_tokens = static_cast<int64_t>(prompt.size());
  std::vector<int32_t> output{argmax(append(sequence, prompt, prompt_tokens, 1).logits)};
  while (static_cast<int64_t>(output.size()) < count && output.back() != stop_id)
    output.push_back(argmax(append(sequence, std::span(output).last(1), prompt_tokens, 1).logits));
  release(sequence);
  return output;
}

}  // namespace plait::testing
