#include "model/deepseek_weights.h"

#include <mutex>

#include "tensor/weight_source.h"

namespace plait {
namespace {

using kernels::Activation;
using kernels::Implementation;
using kernels::PackedMatrix;
using kernels::WeightFormat;

constexpr int64_t kFp8Block = 128;

Result<WeightFormat> stored_format(const WeightSource& source) {
  switch (source.dtype) {
    case DType::kF32:
    case DType::kF16:  // its 11-bit mantissa does not fit into bfloat16
      return WeightFormat::kF32;
    case DType::kBF16:
      return WeightFormat::kBF16;
    case DType::kF8E4M3:
      if (source.scales) return WeightFormat::kF8Block;
      return corrupt("F8_E4M3 without its weight_scale_inv tensor");
    default:
      return unsupported(fmt::format("weights stored as {} cannot be used", name_of(source.dtype)));
  }
}

const char* name_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return "F32";
    case WeightFormat::kBF16:
      return "BF16";
    case WeightFormat::kF8Block:
      return "FP8";
  }
  return "?";
}

double bytes_per_weight(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return 4;
    case WeightFormat::kBF16:
      return 2;
    case WeightFormat::kF8Block:
      return 1 + 4.0 / (kFp8Block * kFp8Block);
  }
  return 4;
}

// Float32 rows in memory, as a source for packing.
WeightSource float_rows(const std::vector<float>& values, int64_t rows, int64_t cols) {
  WeightSource source;
  source.dtype = DType::kF32;
  source.rows = rows;
  source.cols = cols;
  source.data = reinterpret_cast<const std::byte*>(values.data());
  return source;
}

// What all writers share. Kept alive by the closures of the requests.
class Packer {
 public:
  Packer(const ModelConfig& config, const ModelOptions& options) : config_(config), options_(options) {}

  // Makes `matrix` when the first of its parts arrives, then packs the part.
  Status pack(PackedMatrix& matrix, int64_t out_features, int64_t in_features, int64_t first_row,
              const WeightSource& source) {
    PLAIT_ASSIGN_OR_RETURN(const WeightFormat format, stored_format(source));
    PLAIT_RETURN_IF_ERROR(ensure(matrix, format, out_features, in_features));
    return matrix.pack_rows(first_row, source);
  }

  // kv_b as stored, and head by head the two matrices of the absorbed form.
  Status pack_kv_b(MlaWeights& weights, const WeightSource& source) {
    PLAIT_RETURN_IF_ERROR(pack(weights.kv_b, source.rows, source.cols, 0, source));
    const WeightFormat format = absorbed_format(weights.kv_b.format());
    const int64_t nope = config_.qk_nope_head_dim, v = config_.v_head_dim, latent = config_.kv_lora_rank;
    std::vector<float> row(latent), keys(latent * nope), values(v * latent);
    for (int64_t head = 0; head < config_.num_attention_heads; ++head) {
      const int64_t first_row = head * (nope + v);
      for (int64_t i = 0; i < nope; ++i) {
        source.decode_row(first_row + i, row.data());
        for (int64_t c = 0; c < latent; ++c) keys[c * nope + i] = row[c];
      }
      for (int64_t i = 0; i < v; ++i) source.decode_row(first_row + nope + i, values.data() + i * latent);
      weights.w_uk[head] = PackedMatrix(options_.implementation, format, latent, nope);
      weights.w_uv[head] = PackedMatrix(options_.implementation, format, v, latent);
      PLAIT_RETURN_IF_ERROR(weights.w_uk[head].pack_rows(0, float_rows(keys, latent, nope)));
      PLAIT_RETURN_IF_ERROR(weights.w_uv[head].pack_rows(0, float_rows(values, v, latent)));
    }
    return {};
  }

  // The lookup table in a dtype that embed() reads.
  Status store_embedding(DeepseekWeights& weights, const WeightSource& source) {
    const bool as_stored = source.dtype == DType::kBF16 || source.dtype == DType::kF32;
    weights.embedding_dtype = source.dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
    weights.embedding = Buffer(source.rows * source.cols * size_of(weights.embedding_dtype));
    if (as_stored) {
      std::memcpy(weights.embedding.data(), source.data, source.size_bytes());
    } else {
      for (int64_t i = 0; i < source.rows; ++i) source.decode_row(i, weights.embedding.as<float>() + i * source.cols);
    }
    if (config_.tie_word_embeddings) return pack(weights.lm_head, source.rows, source.cols, 0, source);
    return {};
  }

  // Formats that the configuration announces, for sizes before anything is loaded.
  WeightFormat announced_format(bool may_be_quantised) const {
    if (may_be_quantised && config_.fp8_block) return WeightFormat::kF8Block;
    return config_.weight_dtype == DType::kBF16 || config_.fp8_block ? WeightFormat::kBF16 : WeightFormat::kF32;
  }
  WeightFormat absorbed_format(WeightFormat stored) const {
    if (stored != WeightFormat::kF8Block) return stored;
    return options_.activation == Activation::kFloat32 ? WeightFormat::kF32 : WeightFormat::kBF16;
  }

 private:
  Status ensure(PackedMatrix& matrix, WeightFormat format, int64_t out_features, int64_t in_features) {
    const std::lock_guard lock(mutex_);
    if (matrix.out_features() == 0) matrix = PackedMatrix(options_.implementation, format, out_features, in_features);
    if (matrix.format() != format)
      return unsupported(fmt::format("stored as {}, but the projection that shares its input as {}", name_of(format),
                                     name_of(matrix.format())));
    return {};
  }

  const ModelConfig config_;
  const ModelOptions options_;
  std::mutex mutex_;  // of the making of matrices; packing itself runs in parallel
};

class RequestBuilder {
 public:
  RequestBuilder(const ModelConfig& config, const ModelOptions& options)
      : config_(config), packer_(std::make_shared<Packer>(config, options)) {}

  void model(DeepseekWeights& weights) {
    const int64_t vocab = config_.vocab_size, hidden = config_.hidden_size;
    request(
        "model.embed_tokens.weight", {vocab, hidden}, false,
        [packer = packer_, &weights](const WeightSource& source) { return packer->store_embedding(weights, source); });
    expect(vocab * hidden, packer_->announced_format(false));
    if (config_.tie_word_embeddings)
      expect(vocab * hidden, packer_->announced_format(false));
    else
      matrix("lm_head.weight", weights.lm_head, vocab, hidden, /*may_be_quantised=*/false);
    floats("model.norm.weight", weights.final_norm, {hidden});
    for (int64_t index = 0; index < config_.num_hidden_layers; ++index) layer(index, weights.layers[index]);
  }

  DeepseekRequests take() { return std::move(result_); }

 private:
  using Write = std::function<Status(const WeightSource&)>;

  void layer(int64_t index, LayerWeights& weights) {
    const std::string prefix = fmt::format("model.layers.{}.", index);
    floats(prefix + "input_layernorm.weight", weights.input_norm, {config_.hidden_size});
    attention(prefix + "self_attn.", weights.attention);
    floats(prefix + "post_attention_layernorm.weight", weights.post_attention_norm, {config_.hidden_size});
    if (config_.layer_has_experts(index))
      experts(prefix + "mlp.", weights.moe);
    else
      feed_forward(prefix + "mlp.", weights.dense, config_.intermediate_size);
  }

  void attention(const std::string& prefix, MlaWeights& weights) {
    const int64_t hidden = config_.hidden_size, heads = config_.num_attention_heads, latent = config_.kv_lora_rank;
    const int64_t queries = heads * config_.qk_head_dim();
    const int64_t head_rows = config_.qk_nope_head_dim + config_.v_head_dim;
    const int64_t latent_begin = query_rows(config_);
    const int64_t stacked = latent_begin + latent + config_.qk_rope_head_dim;
    if (config_.q_lora_rank) {
      const int64_t rank = *config_.q_lora_rank;
      part(prefix + "q_a_proj.weight", weights.query_latent, {stacked, hidden}, 0, rank);
      floats(prefix + "q_a_layernorm.weight", weights.q_a_norm, {rank});
      matrix(prefix + "q_b_proj.weight", weights.q_b, queries, rank);
    } else {
      part(prefix + "q_proj.weight", weights.query_latent, {stacked, hidden}, 0, queries);
    }
    part(prefix + "kv_a_proj_with_mqa.weight", weights.query_latent, {stacked, hidden}, latent_begin,
         latent + config_.qk_rope_head_dim);
    floats(prefix + "kv_a_layernorm.weight", weights.kv_a_norm, {latent});

    weights.w_uk.resize(heads);
    weights.w_uv.resize(heads);
    request(prefix + "kv_b_proj.weight", {heads * head_rows, latent}, true,
            [packer = packer_, &weights](const WeightSource& source) { return packer->pack_kv_b(weights, source); });
    const WeightFormat format = packer_->announced_format(true);
    expect(heads * head_rows * latent, format);
    expect(heads * head_rows * latent, packer_->absorbed_format(format));

    matrix(prefix + "o_proj.weight", weights.o, hidden, heads * config_.v_head_dim);
  }

  void experts(const std::string& prefix, MoeWeights& weights) {
    const int64_t count = config_.gate.experts, width = config_.moe_intermediate_size;
    floats(prefix + "gate.weight", weights.router, {count, config_.hidden_size});
    if (config_.gate.method == GateMethod::kNoAuxTc)
      floats(prefix + "gate.e_score_correction_bias", weights.correction_bias, {count});
    if (config_.n_shared_experts > 0)
      feed_forward(prefix + "shared_experts.", weights.shared, config_.n_shared_experts * width);
    weights.experts.resize(count);
    for (int64_t expert = 0; expert < count; ++expert)
      feed_forward(prefix + fmt::format("experts.{}.", expert), weights.experts[expert], width);
  }

  void feed_forward(const std::string& prefix, FeedForwardWeights& weights, int64_t width) {
    const int64_t hidden = config_.hidden_size;
    part(prefix + "gate_proj.weight", weights.gate_up, {2 * width, hidden}, 0, width);
    part(prefix + "up_proj.weight", weights.gate_up, {2 * width, hidden}, width, width);
    matrix(prefix + "down_proj.weight", weights.down, hidden, width);
  }

  // -- Kinds of targets
  // ------------------------------------------------------------------------------------------------

  void matrix(std::string name, PackedMatrix& target, int64_t out, int64_t in, bool may_be_quantised = true) {
    part(std::move(name), target, {out, in}, 0, out, may_be_quantised);
  }

  struct StackShape {
    int64_t out, in;
  };
  // `rows` rows of `target`, from `first_row` on.
  void part(std::string name, PackedMatrix& target, StackShape shape, int64_t first_row, int64_t rows,
            bool may_be_quantised = true) {
    request(std::move(name), {rows, shape.in}, may_be_quantised,
            [packer = packer_, &target, shape, first_row](const WeightSource& source) {
              return packer->pack(target, shape.out, shape.in, first_row, source);
            });
    expect(rows * shape.in, packer_->announced_format(may_be_quantised));
  }

  void floats(std::string name, std::vector<float>& target, std::vector<int64_t> shape) {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    target.resize(count);
    request(std::move(name), std::move(shape), false, [&target](const WeightSource& source) -> Status {
      for (int64_t i = 0; i < source.rows; ++i) source.decode_row(i, target.data() + i * source.cols);
      return {};
    });
    expect(count, WeightFormat::kF32);
  }

  void request(std::string name, std::vector<int64_t> shape, bool may_be_quantised, Write write) {
    WeightRequest& request = result_.requests.emplace_back();
    request.name = std::move(name);
    request.shape = std::move(shape);
    request.may_be_quantised = may_be_quantised;
    request.write = std::move(write);
  }

  void expect(int64_t weights, WeightFormat format) {
    result_.expected_bytes += static_cast<size_t>(static_cast<double>(weights) * bytes_per_weight(format));
  }

  const ModelConfig& config_;
  std::shared_ptr<Packer> packer_;
  DeepseekRequests result_;
};

}  // namespace

int64_t query_rows(const ModelConfig& config) {
  return config.q_lora_rank.value_or(config.num_attention_heads * config.qk_head_dim());
}

DeepseekRequests deepseek_weight_requests(const ModelConfig& config, const ModelOptions& options,
                                          DeepseekWeights& weights) {
  weights.layers.resize(config.num_hidden_layers);
  RequestBuilder builder(config, options);
  builder.model(weights);
  return builder.take();
}

size_t size_bytes(const MlaWeights& weights) {
  size_t bytes =
      weights.query_latent.size_bytes() + weights.q_b.size_bytes() + weights.kv_b.size_bytes() + weights.o.size_bytes();
  for (const PackedMatrix& matrix : weights.w_uk) bytes += matrix.size_bytes();
  for (const PackedMatrix& matrix : weights.w_uv) bytes += matrix.size_bytes();
  return bytes + (weights.q_a_norm.size() + weights.kv_a_norm.size()) * sizeof(float);
}

size_t size_bytes(const FeedForwardWeights& weights) {
  return weights.gate_up.size_bytes() + weights.down.size_bytes();
}

size_t size_bytes(const DeepseekWeights& weights) {
  size_t bytes = weights.embedding.size_bytes() + weights.lm_head.size_bytes();
  size_t floats = weights.final_norm.size();
  for (const LayerWeights& layer : weights.layers) {
    bytes += size_bytes(layer.attention) + size_bytes(layer.dense) + size_bytes(layer.moe.shared);
    for (const FeedForwardWeights& expert : layer.moe.experts) bytes += size_bytes(expert);
    floats += layer.input_norm.size() + layer.post_attention_norm.size() + layer.moe.router.size() +
              layer.moe.correction_bias.size();
  }
  return bytes + floats * sizeof(float);
}

}  // namespace plait
