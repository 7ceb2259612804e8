// A model that hands every call to another one: for tests that keep models, or that change single stages.
#pragma once

#include "model/model.h"

namespace plait::testing {

class BorrowedModel : public Model {
 public:
  explicit BorrowedModel(Model& model) : model_(model) {}

  const ModelConfig& config() const override { return model_.config(); }
  std::vector<WeightRequest> weight_requests() override { return {}; }
  Status finish_loading() override { return {}; }
  size_t weight_bytes() const override { return model_.weight_bytes(); }
  KvSpec kv_spec() const override { return model_.kv_spec(); }
  size_t scratch_bytes(int64_t rows, int64_t context_tokens) const override {
    return model_.scratch_bytes(rows, context_tokens);
  }
  void forward(const kernels::Context& context, const Step& step, const KvMemory& kv, Rows logits,
               ForwardObserver* observer) override {
    model_.forward(context, step, kv, logits, observer);
  }
  StepCost cost(const Step& step, int64_t distinct_experts) const override {
    return model_.cost(step, distinct_experts);
  }
  void begin_step(const Step& step, std::span<const int64_t> own) override { model_.begin_step(step, own); }
  void embed(const kernels::Context& context, std::span<const int32_t> token_ids, Rows y) override {
    model_.embed(context, token_ids, y);
  }
  void norm(const kernels::Context& context, NormPlace place, int64_t layer, ConstRows residual, Rows y) override {
    model_.norm(context, place, layer, residual, y);
  }
  void add_norm(const kernels::Context& context, NormPlace place, int64_t layer, ConstRows delta, Rows residual,
                Rows y) override {
    model_.add_norm(context, place, layer, delta, residual, y);
  }
  int64_t projection_width() const override { return model_.projection_width(); }
  bool projection_is_shared() const override { return model_.projection_is_shared(); }
  void project(const kernels::Context& context, int64_t layer, ConstRows x, Rows y) override {
    model_.project(context, layer, x, y);
  }
  void attention(const kernels::Context& context, int64_t layer, const KvMemory& kv, Rows projected,
                 const AllCacheRows& all_cache_rows, Rows y) override {
    model_.attention(context, layer, kv, projected, all_cache_rows, y);
  }
  bool has_experts(int64_t layer) const override { return model_.has_experts(layer); }
  void dense(const kernels::Context& context, int64_t layer, ConstRows x, Rows y) override {
    model_.dense(context, layer, x, y);
  }
  Routing route(const kernels::Context& context, int64_t layer, ConstRows x) override {
    return model_.route(context, layer, x);
  }
  void shared(const kernels::Context& context, int64_t layer, ConstRows x, Rows y) override {
    model_.shared(context, layer, x, y);
  }
  void routed(const kernels::Context& context, int64_t layer, const Routing& routing, ConstRows x, Rows y) override {
    model_.routed(context, layer, routing, x, y);
  }
  void expert_rows(const kernels::Context& context, int64_t layer, ConstRows x, std::span<const int64_t> first_row,
                   std::span<const int64_t> row_count, Rows y) override {
    model_.expert_rows(context, layer, x, first_row, row_count, y);
  }
  void logits(const kernels::Context& context, ConstRows x, Rows logits) override { model_.logits(context, x, logits); }

 private:
  Model& model_;
};

}  // namespace plait::testing
