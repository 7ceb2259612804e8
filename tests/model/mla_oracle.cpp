#include "tests/model/mla_oracle.h"

#include <numbers>
#include <numeric>

namespace plait::testing {
namespace {

using Vector = MlaOracle::Vector;

constexpr double kLatentNormEps = 1e-6;

double mscale(double factor, double mscale) {
  return factor > 1 ? 0.1 * mscale * std::log(factor) + 1 : 1;
}

double softmax_scale(const ModelConfig& config) {
  const double scale = 1 / std::sqrt(static_cast<double>(config.qk_head_dim()));
  return config.rope.yarn ? scale * std::pow(mscale(config.rope.factor, config.rope.mscale_all_dim), 2) : scale;
}

double rope_frequency(const RopeConfig& rope, int64_t width, int64_t pair) {
  const double frequency = std::pow(rope.theta, -2.0 * static_cast<double>(pair) / static_cast<double>(width));
  if (!rope.yarn) return frequency;
  const auto pair_that_turns = [&](double times) {
    const double context = static_cast<double>(rope.original_max_positions);
    return static_cast<double>(width) * std::log(context / (2 * std::numbers::pi * times)) / (2 * std::log(rope.theta));
  };
  const double low = std::max(std::floor(pair_that_turns(rope.beta_fast)), 0.0);
  const double high = std::min(std::ceil(pair_that_turns(rope.beta_slow)), static_cast<double>(width - 1));
  const double ramp = std::clamp((static_cast<double>(pair) - low) / (high > low ? high - low : 0.001), 0.0, 1.0);
  return frequency * (1 - ramp) + frequency / rope.factor * ramp;
}

Vector part(const Vector& x, int64_t begin, int64_t count) {
  return {x.begin() + begin, x.begin() + begin + count};
}

double dot(const Vector& a, const Vector& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

void add(Vector& sum, const Vector& x, double factor = 1) {
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += factor * x[i];
}

// Indices of the k largest, lower index first among equals.
std::vector<int32_t> top_k(const Vector& x, int64_t k) {
  std::vector<int32_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return x[a] > x[b]; });
  order.resize(k);
  return order;
}

}  // namespace

MlaOracle::MlaOracle(const ModelConfig& config, const TensorSet& weights)
    : config_(config), weights_(weights), caches_(config.num_hidden_layers) {}

MlaOracle::Vector MlaOracle::product(const std::string& name, const Vector& x) const {
  if (!values_.contains(name)) values_[name] = weights_.values(name);
  const Vector& weight = values_[name];
  Vector y(weight.size() / x.size());
  for (size_t i = 0; i < y.size(); ++i)
    y[i] = std::inner_product(x.begin(), x.end(), weight.begin() + static_cast<int64_t>(i * x.size()), 0.0);
  return y;
}

MlaOracle::Vector MlaOracle::norm(const std::string& name, const Vector& x, double eps) const {
  const double scale = 1 / std::sqrt(dot(x, x) / static_cast<double>(x.size()) + eps);
  Vector y = weights_.values(name);
  for (size_t i = 0; i < x.size(); ++i) y[i] *= x[i] * scale;
  return y;
}

MlaOracle::Vector MlaOracle::rotate(Vector x, int64_t position) const {
  const RopeConfig& rope = config_.rope;
  const double amplitude = rope.yarn ? mscale(rope.factor, rope.mscale) / mscale(rope.factor, rope.mscale_all_dim) : 1;
  for (size_t i = 0; i + 1 < x.size(); i += 2) {
    const double angle = static_cast<double>(position) *
                         rope_frequency(rope, static_cast<int64_t>(x.size()), static_cast<int64_t>(i / 2));
    const double real = x[i], imaginary = x[i + 1];
    x[i] = amplitude * (real * std::cos(angle) - imaginary * std::sin(angle));
    x[i + 1] = amplitude * (real * std::sin(angle) + imaginary * std::cos(angle));
  }
  return x;
}

MlaOracle::Vector MlaOracle::attention(int64_t index, const Vector& x, int64_t position) {
  const std::string prefix = fmt::format("model.layers.{}.self_attn.", index);
  const int64_t nope = config_.qk_nope_head_dim, rope = config_.qk_rope_head_dim, v = config_.v_head_dim;
  const int64_t latent_width = config_.kv_lora_rank;
  LayerCache& cache = caches_[index];
  const Vector kv = product(prefix + "kv_a_proj_with_mqa.weight", x);
  cache.latent.push_back(norm(prefix + "kv_a_layernorm.weight", part(kv, 0, latent_width), kLatentNormEps));
  cache.rope_key.push_back(rotate(part(kv, latent_width, rope), position));

  const Vector queries =
      config_.q_lora_rank
          ? product(prefix + "q_b_proj.weight",
                    norm(prefix + "q_a_layernorm.weight", product(prefix + "q_a_proj.weight", x), kLatentNormEps))
          : product(prefix + "q_proj.weight", x);
  const Vector kv_b = weights_.values(prefix + "kv_b_proj.weight");
  Vector out;
  for (int64_t head = 0; head < config_.num_attention_heads; ++head) {
    const Vector query = part(queries, head * (nope + rope), nope + rope);
    const Vector q_rope = rotate(part(query, nope, rope), position);
    Vector absorbed(latent_width, 0);
    const auto kv_b_row = [&](int64_t row) {
      return part(kv_b, (head * (nope + v) + row) * latent_width, latent_width);
    };
    for (int64_t i = 0; i < nope; ++i) add(absorbed, kv_b_row(i), query[i]);

    Vector scores;
    for (size_t t = 0; t < cache.latent.size(); ++t)
      scores.push_back(softmax_scale(config_) * (dot(absorbed, cache.latent[t]) + dot(q_rope, cache.rope_key[t])));
    const double maximum = *std::max_element(scores.begin(), scores.end());
    Vector context(latent_width, 0);
    double sum = 0;
    for (size_t t = 0; t < scores.size(); ++t) {
      const double weight = std::exp(scores[t] - maximum);
      sum += weight;
      add(context, cache.latent[t], weight);
    }
    for (int64_t i = 0; i < v; ++i) out.push_back(dot(kv_b_row(nope + i), context) / sum);
  }
  return product(prefix + "o_proj.weight", out);
}

MlaOracle::Vector MlaOracle::feed_forward(const std::string& prefix, const Vector& x) const {
  Vector gate = product(prefix + "gate_proj.weight", x);
  const Vector up = product(prefix + "up_proj.weight", x);
  for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
  return product(prefix + "down_proj.weight", gate);
}

std::vector<int32_t> MlaOracle::choose_experts(const Vector& scores, const std::string& prefix) const {
  const GateConfig& gate = config_.gate;
  const bool biased = gate.method == GateMethod::kNoAuxTc;
  Vector choice = scores;
  if (biased) add(choice, weights_.values(prefix + "gate.e_score_correction_bias"));
  if (gate.method != GateMethod::kGreedy && gate.groups > 1) {
    const int64_t width = gate.experts / gate.groups;
    Vector group_scores;
    for (int32_t group = 0; group < gate.groups; ++group) {
      Vector members = part(choice, group * width, width);
      std::sort(members.rbegin(), members.rend());
      group_scores.push_back(biased ? members[0] + members[1] : members[0]);
    }
    const std::vector<int32_t> kept = top_k(group_scores, gate.kept_groups);
    for (int64_t expert = 0; expert < gate.experts; ++expert)
      if (std::find(kept.begin(), kept.end(), expert / width) == kept.end())
        choice[expert] = -std::numeric_limits<double>::infinity();
  }
  return top_k(choice, gate.experts_per_token);
}

MlaOracle::Vector MlaOracle::layer(int64_t index, Vector x, int64_t position, Result& result) {
  const std::string prefix = fmt::format("model.layers.{}.", index);
  add(x, attention(index, norm(prefix + "input_layernorm.weight", x, config_.rms_norm_eps), position));
  const Vector normed = norm(prefix + "post_attention_layernorm.weight", x, config_.rms_norm_eps);
  const bool dense = index < config_.first_k_dense_replace || index % config_.moe_layer_freq != 0;
  if (dense) {
    add(x, feed_forward(prefix + "mlp.", normed));
    return x;
  }
  Vector scores = product(prefix + "mlp.gate.weight", normed);
  const double maximum = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& score : scores) {
    const bool softmax = config_.gate.scoring == GateScoring::kSoftmax;
    score = softmax ? std::exp(score - maximum) : 1 / (1 + std::exp(-score));
    sum += score;
  }
  if (config_.gate.scoring == GateScoring::kSoftmax)
    for (double& score : scores) score /= sum;

  std::vector<int32_t> experts = choose_experts(scores, prefix + "mlp.");
  double total = 0;
  for (const int32_t expert : experts) total += scores[expert];
  const double factor = config_.gate.scaling_factor / (config_.gate.normalise ? total + 1e-20 : 1);
  for (const int32_t expert : experts)
    add(x, feed_forward(fmt::format("{}mlp.experts.{}.", prefix, expert), normed), factor * scores[expert]);
  if (config_.n_shared_experts > 0) add(x, feed_forward(prefix + "mlp.shared_experts.", normed));
  std::sort(experts.begin(), experts.end());
  result.routed[index].push_back(std::move(experts));
  return x;
}

MlaOracle::Result MlaOracle::forward(std::span<const int32_t> tokens) {
  Result result;
  const Vector embedding = weights_.values("model.embed_tokens.weight");
  const std::string head = config_.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  for (const int32_t token : tokens) {
    const auto position = static_cast<int64_t>(caches_.front().latent.size());
    Vector x = part(embedding, token * config_.hidden_size, config_.hidden_size);
    for (int64_t index = 0; index < config_.num_hidden_layers; ++index)
      x = layer(index, std::move(x), position, result);
    result.logits.push_back(product(head, norm("model.norm.weight", x, config_.rms_norm_eps)));
  }
  return result;
}

void MlaOracle::fill_cache_with_zeros(int64_t tokens) {
  for (LayerCache& cache : caches_) {
    cache.latent.assign(tokens, Vector(config_.kv_lora_rank));
    cache.rope_key.assign(tokens, Vector(config_.qk_rope_head_dim));
  }
}

}  // namespace plait::testing
