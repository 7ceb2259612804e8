#include "model/deepseek_model.h"

#include "base/assert.h"
#include "kernels/embedding.h"
#include "kernels/experts.h"
#include "kernels/norm.h"
#include "model/scratch.h"

namespace plait {
namespace {

using kernels::Context;

double product_flops(const kernels::PackedMatrix& matrix, double rows) {
  return 2.0 * rows * static_cast<double>(matrix.out_features()) * static_cast<double>(matrix.in_features());
}

double product_flops(const FeedForwardWeights& weights, double rows) {
  return product_flops(weights.gate_up, rows) + product_flops(weights.down, rows);
}

// Products of `rows` rows with all of a matrix.
StepCost::Part product_cost(const kernels::PackedMatrix& matrix, double rows) {
  return {.weight_bytes = static_cast<double>(matrix.size_bytes()), .flops = product_flops(matrix, rows)};
}

StepCost::Part product_cost(const FeedForwardWeights& weights, double rows) {
  return {.weight_bytes = static_cast<double>(size_bytes(weights)), .flops = product_flops(weights, rows)};
}

bool has_dense_layers(const ModelConfig& config) {
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer)
    if (!config.layer_has_experts(layer)) return true;
  return false;
}

// One grouped product computes all experts of a layer, so they must be stored alike.
Status check_uniform_experts(int64_t layer, std::span<const FeedForwardWeights> experts) {
  for (size_t i = 1; i < experts.size(); ++i)
    if (experts[i].gate_up.format() != experts[0].gate_up.format() ||
        experts[i].down.format() != experts[0].down.format())
      return unsupported(
          fmt::format("model.layers.{}.mlp.experts: 0 and {} are stored in different formats", layer, i));
  return {};
}

}  // namespace

DeepseekModel::DeepseekModel(const ModelConfig& config, const ModelOptions& options)
    : config_(config),
      options_(options),
      attention_(config, options.shard.heads.of(config.num_attention_heads).size(), options.activation),
      experts_(config) {}

std::vector<WeightRequest> DeepseekModel::weight_requests() {
  DeepseekRequests made = deepseek_weight_requests(config_, options_, weights_);
  expected_bytes_ = made.expected_bytes;
  return std::move(made.requests);
}

Status DeepseekModel::finish_loading() {
  // Absorbed matrices were made where kv_b was in hand (deepseek_weights.cpp): nothing has to be read twice.
  const bool embeds = options_.shard.is_first_stage(), heads = options_.shard.is_last_stage(config_.num_hidden_layers);
  if ((heads && weights_.lm_head.out_features() != weights_.head_ids.size()) ||
      (embeds && weights_.embedding.size_bytes() == 0))
    return internal("finish_loading() was called before the weights were written");
  for (size_t layer = 0; layer < weights_.layers.size(); ++layer)
    PLAIT_RETURN_IF_ERROR(
        check_uniform_experts(weights_.first_layer + static_cast<int64_t>(layer), weights_.layers[layer].moe.experts));
  loaded_ = true;
  return {};
}

size_t DeepseekModel::weight_bytes() const {
  return loaded_ ? size_bytes(weights_) : expected_bytes_;
}

KvSpec DeepseekModel::kv_spec() const {
  KvSpec spec;
  spec.components.push_back(attention_.kv_component(options_.shard.layers_of(config_.num_hidden_layers).size()));
  return spec;
}

size_t DeepseekModel::scratch_bytes(int64_t rows, int64_t context_tokens) const {
  const size_t streams = 3 * rows * config_.hidden_size * sizeof(float);
  size_t blocks = attention_.scratch_bytes(rows);
  int64_t product_inputs = rows * std::max(config_.hidden_size, config_.num_attention_heads * config_.v_head_dim);
  if (has_dense_layers(config_)) {
    blocks = std::max(blocks, feed_forward_scratch_bytes(rows, config_.intermediate_size));
    product_inputs = std::max(product_inputs, rows * config_.intermediate_size);
  }
  if (config_.gate.experts > 0) {
    const int64_t pairs = rows * config_.gate.experts_per_token;
    blocks = std::max(blocks, experts_.scratch_bytes(config_, rows));
    product_inputs = std::max(product_inputs, pairs * std::max(config_.hidden_size, config_.moe_intermediate_size));
  }
  // Products keep a copy of their inputs in the layout of their instructions.
  const size_t packed_inputs = product_inputs * sizeof(float);
  // Decoded stretches of weights, tiles of keys: whatever threads keep to themselves.
  const size_t of_threads = static_cast<size_t>(usable_cores()) << 20;
  const size_t needed =
      streams + blocks + packed_inputs + attention_.kernel_scratch_bytes(rows, context_tokens) + of_threads;
  return needed + needed / 4;  // what Workspace holds in reserve
}

void DeepseekModel::begin_step(const Step& step, std::span<const int64_t> own) {
  PLAIT_ASSERT(loaded_, "a step before finish_loading()");
  rows_.assign(step, own);
}

void DeepseekModel::embed(const Context& context, std::span<const int32_t> token_ids, Rows y) {
  const Range ids = weights_.embedding_ids;
  kernels::embed(context, {weights_.embedding.data(), weights_.embedding_dtype, ids.begin, ids.size()}, token_ids, y);
}

const std::vector<float>& DeepseekModel::norm_weights(NormPlace place, int64_t layer) const {
  switch (place) {
    case NormPlace::kAttention:
      return weights_of(layer).input_norm;
    case NormPlace::kFeedForward:
      return weights_of(layer).post_attention_norm;
    case NormPlace::kHead:
      break;
  }
  return weights_.final_norm;
}

void DeepseekModel::norm(const Context& context, NormPlace place, int64_t layer, ConstRows residual, Rows y) {
  kernels::rms_norm(context, residual, norm_weights(place, layer).data(), static_cast<float>(config_.rms_norm_eps), y);
}

void DeepseekModel::add_norm(const Context& context, NormPlace place, int64_t layer, ConstRows delta, Rows residual,
                             Rows y) {
  kernels::add_rms_norm(context, delta, residual, norm_weights(place, layer).data(),
                        static_cast<float>(config_.rms_norm_eps), y);
}

void DeepseekModel::project(const Context& context, int64_t layer, ConstRows x, Rows y) {
  attention_.project(context, weights_of(layer).attention, x, y);
}

void DeepseekModel::attention(const Context& context, int64_t layer, const KvMemory& kv, Rows projected,
                              const AllCacheRows& all_cache_rows, Rows y) {
  const KvMemory::Component& latents = kv.components.front();
  std::byte* data = latents.data + (layer - weights_.first_layer) * latents.layer_stride_bytes;
  attention_.attend(context, weights_of(layer).attention, rows_, attention_.cache(data, kv.page_tokens), projected,
                    all_cache_rows, y);
}

void DeepseekModel::dense(const Context& context, int64_t layer, ConstRows x, Rows y) {
  feed_forward(context, weights_of(layer).dense, x, y);
}

Routing DeepseekModel::route(const Context& context, int64_t layer, ConstRows x) {
  return experts_.route(context, weights_of(layer).moe, x);
}

void DeepseekModel::shared(const Context& context, int64_t layer, ConstRows x, Rows y) {
  experts_.shared(context, weights_of(layer).moe, x, y);
}

void DeepseekModel::routed(const Context& context, int64_t layer, const Routing& routing, ConstRows x, Rows y) {
  experts_.routed(context, weights_of(layer).moe, routing, x, y);
}

void DeepseekModel::expert_rows(const Context& context, int64_t layer, ConstRows x, std::span<const int64_t> first_row,
                                std::span<const int64_t> row_count, Rows y) {
  experts_.expert_rows(context, weights_of(layer).moe, x, first_row, row_count, y);
}

void DeepseekModel::logits(const Context& context, ConstRows x, Rows logits) {
  kernels::linear(context, x, weights_.lm_head, logits);
}

void DeepseekModel::forward(const Context& context, const Step& step, const KvMemory& kv, Rows logits,
                            ForwardObserver* observer) {
  PLAIT_ASSERT(logits.rows == static_cast<int64_t>(step.logit_rows.size()), "one row of logits per wanted row");
  const int64_t rows = step.rows();
  if (rows == 0) return;
  begin_step(step, {});

  const int64_t hidden = config_.hidden_size;
  const Rows residual = scratch::rows(context, scratch::kResidual, rows, hidden);
  const Rows normed = scratch::rows(context, scratch::kNormed, rows, hidden);
  const Rows delta = scratch::rows(context, scratch::kDelta, rows, hidden);
  embed(context, step.token_ids, residual);
  for (int64_t index = 0; index < config_.num_hidden_layers; ++index)
    layer(context, index, kv, residual, normed, delta, observer);
  if (!step.logit_rows.empty()) head(context, step, residual, delta, logits, observer);
}

// On entry `residual` lacks the last addition of the layer before, which is in `delta`: it is made together with the
// norm that follows it. On exit the same holds for this layer.
void DeepseekModel::layer(const Context& context, int64_t index, const KvMemory& kv, Rows residual, Rows normed,
                          Rows delta, ForwardObserver* observer) {
  if (index == 0)
    norm(context, NormPlace::kAttention, index, residual, normed);
  else
    add_norm(context, NormPlace::kAttention, index, delta, residual, normed);
  if (observer) observer->layer_input(index, residual);
  const Rows projected = scratch::rows(context, scratch::kProjected, normed.rows, projection_width());
  project(context, index, normed, projected);
  attention(context, index, kv, projected, {}, delta);

  add_norm(context, NormPlace::kFeedForward, index, delta, residual, normed);
  if (!has_experts(index)) {
    dense(context, index, normed, delta);
    return;
  }
  const Routing routing = route(context, index, normed);
  const int64_t k = config_.gate.experts_per_token;
  if (observer) observer->routed_experts(index, {routing.expert_ids, static_cast<size_t>(normed.rows * k)}, k);
  shared(context, index, normed, delta);
  routed(context, index, routing, normed, delta);
}

// Final norm and head of the rows whose logits are wanted.
void DeepseekModel::head(const Context& context, const Step& step, Rows residual, Rows delta, Rows logits,
                         ForwardObserver* observer) {
  const int64_t wanted = logits.rows;
  if (wanted < residual.rows) {
    const Rows wanted_residual = scratch::rows(context, scratch::kLogitResidual, wanted, residual.cols);
    const Rows wanted_delta = scratch::rows(context, scratch::kLogitDelta, wanted, residual.cols);
    for (int64_t i = 0; i < wanted; ++i) {
      std::copy_n(residual.row(step.logit_rows[i]), residual.cols, wanted_residual.row(i));
      std::copy_n(delta.row(step.logit_rows[i]), delta.cols, wanted_delta.row(i));
    }
    residual = wanted_residual;
    delta = wanted_delta;
  }
  const Rows normed = scratch::rows(context, scratch::kNormed, wanted, residual.cols);
  add_norm(context, NormPlace::kHead, /*layer=*/-1, delta, residual, normed);
  if (observer) observer->final_hidden(normed);
  this->logits(context, normed, logits);
}

StepCost DeepseekModel::cost(const Step& step, int64_t distinct_experts) const {
  StepCost cost;
  const auto rows = static_cast<double>(step.rows());
  if (step.rows() == 0) return cost;
  int64_t expert_layers = 0;
  for (int64_t index = 0; index < config_.num_hidden_layers; ++index) expert_layers += config_.layer_has_experts(index);
  double per_layer = 0;
  if (expert_layers > 0) {
    const double share = static_cast<double>(config_.gate.experts_per_token) / config_.gate.experts;
    per_layer = distinct_experts > 0 ? static_cast<double>(distinct_experts) / static_cast<double>(expert_layers)
                                     : config_.gate.experts * (1 - std::pow(1 - share, rows));
  }
  for (const LayerWeights& layer : weights_.layers) add_layer_cost(layer, step, per_layer, cost);

  cost.parts.push_back(
      {.weight_bytes = rows * static_cast<double>(config_.hidden_size * size_of(weights_.embedding_dtype))});
  if (!step.logit_rows.empty())
    cost.parts.push_back(product_cost(weights_.lm_head, static_cast<double>(step.logit_rows.size())));
  return cost;
}

void DeepseekModel::add_layer_cost(const LayerWeights& weights, const Step& step, double distinct_experts,
                                   StepCost& cost) const {
  const auto rows = static_cast<double>(step.rows());
  const MlaWeights& attention = weights.attention;
  for (const kernels::PackedMatrix* matrix : {&attention.query_latent, &attention.q_b, &attention.o})
    cost.parts.push_back(product_cost(*matrix, rows));
  StepCost::Part attend;
  bool expanded = false, absorbed = false;
  const double kv_row_bytes = static_cast<double>(attention_.kv_component(1).row_bytes());
  for (const StepSequence& sequence : step.sequences) {
    const int64_t end = sequence.first_position + sequence.row_count;
    expanded |= sequence.first_position < sequence.expanded_until;
    absorbed |= end > sequence.expanded_until;
    attend.kv_bytes += kv_row_bytes * static_cast<double>(end + sequence.row_count);  // read all, write the new
    attend.flops += attention_.attention_flops(sequence);
  }
  if (expanded) attend.weight_bytes += static_cast<double>(attention.kv_b.size_bytes());
  for (size_t head = 0; absorbed && head < attention.w_uk.size(); ++head)
    attend.weight_bytes += static_cast<double>(attention.w_uk[head].size_bytes() + attention.w_uv[head].size_bytes());
  cost.parts.push_back(attend);

  if (weights.moe.experts.empty()) {
    cost.parts.push_back(product_cost(weights.dense, rows));
    return;
  }
  const FeedForwardWeights& expert = weights.moe.experts.front();
  const double router_weights = static_cast<double>(weights.moe.router.size());
  cost.parts.push_back({.weight_bytes = router_weights * sizeof(float), .flops = 2 * rows * router_weights});
  cost.parts.push_back(product_cost(weights.moe.shared, rows));
  cost.parts.push_back({.weight_bytes = distinct_experts * static_cast<double>(size_bytes(expert)),
                        .flops = product_flops(expert, rows * config_.gate.experts_per_token)});
}

}  // namespace plait
