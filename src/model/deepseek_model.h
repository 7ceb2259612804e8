// DeepSeek-V2-Lite, V2, V3, R1 and Kimi-K2: MLA and a mixture of experts in pre-norm blocks.
#pragma once

#include <vector>

#include "model/deepseek_weights.h"
#include "model/feed_forward.h"
#include "model/mla.h"
#include "model/model.h"

namespace plait {

class DeepseekModel : public Model {
 public:
  DeepseekModel(const ModelConfig& config, const ModelOptions& options);

  const ModelConfig& config() const override { return config_; }
  std::vector<WeightRequest> weight_requests() override;
  Status finish_loading() override;
  size_t weight_bytes() const override;
  KvSpec kv_spec() const override;
  size_t scratch_bytes(int64_t rows, int64_t context_tokens) const override;
  void forward(const kernels::Context& context, const Step& step, const KvMemory& kv, Rows logits,
               ForwardObserver* observer) override;
  StepCost cost(const Step& step, int64_t distinct_experts) const override;

  void begin_step(const Step& step, std::span<const int64_t> own) override;
  void embed(const kernels::Context& context, std::span<const int32_t> token_ids, Rows y) override;
  void norm(const kernels::Context& context, NormPlace place, int64_t layer, ConstRows residual, Rows y) override;
  void add_norm(const kernels::Context& context, NormPlace place, int64_t layer, ConstRows delta, Rows residual,
                Rows y) override;
  int64_t projection_width() const override { return attention_.projection_width(); }
  bool projection_is_shared() const override { return config_.q_lora_rank.has_value(); }
  void project(const kernels::Context& context, int64_t layer, ConstRows x, Rows y) override;
  void attention(const kernels::Context& context, int64_t layer, const KvMemory& kv, Rows projected,
                 const AllCacheRows& all_cache_rows, Rows y) override;
  bool has_experts(int64_t layer) const override { return config_.layer_has_experts(layer); }
  void dense(const kernels::Context& context, int64_t layer, ConstRows x, Rows y) override;
  Routing route(const kernels::Context& context, int64_t layer, ConstRows x) override;
  void shared(const kernels::Context& context, int64_t layer, ConstRows x, Rows y) override;
  void routed(const kernels::Context& context, int64_t layer, const Routing& routing, ConstRows x, Rows y) override;
  void expert_rows(const kernels::Context& context, int64_t layer, ConstRows x, std::span<const int64_t> first_row,
                   std::span<const int64_t> row_count, Rows y) override;
  void logits(const kernels::Context& context, ConstRows x, Rows logits) override;

 private:
  const LayerWeights& weights_of(int64_t layer) const { return weights_.layers[layer - weights_.first_layer]; }
  const std::vector<float>& norm_weights(NormPlace place, int64_t layer) const;
  void layer(const kernels::Context& context, int64_t index, const KvMemory& kv, Rows residual, Rows normed, Rows delta,
             ForwardObserver* observer);
  void head(const kernels::Context& context, const Step& step, Rows residual, Rows delta, Rows logits,
            ForwardObserver* observer);
  void add_layer_cost(const LayerWeights& weights, const Step& step, double distinct_experts, StepCost& cost) const;

  const ModelConfig config_;
  const ModelOptions options_;
  DeepseekWeights weights_;
  size_t expected_bytes_ = 0;
  bool loaded_ = false;
  const MlaAttention attention_;
  ExpertLayer experts_;
  MlaRows rows_;  // of the step in hand
};

}  // namespace plait
