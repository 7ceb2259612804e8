#include "model/deepseek_weights.h"

#include <mutex>
#include <numeric>

#include "model/shard_shapes.h"
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
      // A part that begins inside a block of scales keeps its values as float32: they have no FP8 form of their own.
      if (source.scales) return source.first_col % kFp8Block == 0 ? WeightFormat::kF8Block : WeightFormat::kF32;
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

  // kv_b of the local heads as stored, and head by head the two matrices of the absorbed form.
  Status pack_kv_b(MlaWeights& weights, const WeightSource& source) {
    PLAIT_RETURN_IF_ERROR(pack(weights.kv_b, source.rows, source.cols, 0, source));
    const WeightFormat format = absorbed_format(weights.kv_b.format());
    const int64_t nope = config_.qk_nope_head_dim, v = config_.v_head_dim, latent = config_.kv_lora_rank;
    std::vector<float> row(latent), keys(latent * nope), values(v * latent);
    for (size_t head = 0; head < weights.w_uk.size(); ++head) {
      const int64_t first_row = static_cast<int64_t>(head) * (nope + v);
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
  void store_embedding(DeepseekWeights& weights, const WeightSource& source) {
    const bool as_stored = source.dtype == DType::kBF16 || source.dtype == DType::kF32;
    weights.embedding_dtype = source.dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
    weights.embedding = Buffer(source.rows * source.cols * size_of(weights.embedding_dtype));
    if (as_stored) {
      std::memcpy(weights.embedding.data(), source.data, source.size_bytes());
    } else {
      for (int64_t i = 0; i < source.rows; ++i) source.decode_row(i, weights.embedding.as<float>() + i * source.cols);
    }
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

// Lists every tensor of the model. Of those that the shard has no part in, the request has nothing to write.
class RequestBuilder {
 public:
  RequestBuilder(const ModelConfig& config, const ModelOptions& options)
      : config_(config),
        shard_(options.shard),
        shapes_(shard_shapes(config, options.shard)),
        packer_(std::make_shared<Packer>(config, options)) {}

  void model(DeepseekWeights& weights) {
    vocabulary(weights);
    const Range layers = shard_.layers_of(config_.num_hidden_layers);
    weights.layers.resize(layers.size());
    weights.first_layer = layers.begin;
    LayerWeights elsewhere;
    for (int64_t index = 0; index < config_.num_hidden_layers; ++index) {
      mine_ = layers.contains(index);
      layer(index, mine_ ? weights.layers[index - layers.begin] : elsewhere);
    }
  }

  DeepseekRequests take() { return std::move(result_); }

 private:
  using Write = std::function<Status(const WeightSource&)>;

  void vocabulary(DeepseekWeights& weights) {
    const int64_t vocab = config_.vocab_size, hidden = config_.hidden_size;
    const Range ids = shard_.embedding.of(vocab), outputs = shapes_.head_ids;
    const bool embeds = shard_.is_first_stage(), heads = shard_.is_last_stage(config_.num_hidden_layers);
    const bool tied = config_.tie_word_embeddings;
    weights.embedding_ids = ids;
    weights.head_ids = outputs;

    mine_ = embeds || (heads && tied);
    request("model.embed_tokens.weight", {vocab, hidden}, false,
            [packer = packer_, &weights, ids, outputs, embeds, makes_head = heads && tied](const WeightSource& source) {
              if (embeds) packer->store_embedding(weights, source.slice_rows(ids.begin, ids.size()));
              const WeightSource head = source.slice_rows(outputs.begin, outputs.size());
              return makes_head ? packer->pack(weights.lm_head, head.rows, head.cols, 0, head) : Status();
            });
    if (embeds) expect(ids.size() * hidden, packer_->announced_format(false));
    mine_ = heads;
    if (tied)
      expect(outputs.size() * hidden, packer_->announced_format(false));
    else
      part("lm_head.weight", {vocab, hidden}, rows_of(outputs), weights.lm_head, shapes_.lm_head, 0, false);
    floats("model.norm.weight", weights.final_norm, {hidden});
  }

  void layer(int64_t index, LayerWeights& weights) {
    const std::string prefix = fmt::format("model.layers.{}.", index);
    floats(prefix + "input_layernorm.weight", weights.input_norm, {config_.hidden_size});
    attention(prefix + "self_attn.", weights.attention);
    floats(prefix + "post_attention_layernorm.weight", weights.post_attention_norm, {config_.hidden_size});
    if (config_.layer_has_experts(index))
      experts(prefix + "mlp.", weights.moe);
    else
      feed_forward(prefix + "mlp.", weights.dense, config_.intermediate_size, shapes_.dense);
  }

  void attention(const std::string& prefix, MlaWeights& weights) {
    const int64_t hidden = config_.hidden_size, all_heads = config_.num_attention_heads, latent = config_.kv_lora_rank;
    const AttentionShapes& shapes = shapes_.attention;
    const Range heads = shapes.heads;
    const auto of_heads = [&](int64_t per_head) { return Range{heads.begin * per_head, heads.end * per_head}; };
    const int64_t qk = config_.qk_head_dim(), kv = config_.qk_nope_head_dim + config_.v_head_dim;
    if (config_.q_lora_rank) {
      const int64_t rank = *config_.q_lora_rank;
      part(prefix + "q_a_proj.weight", {rank, hidden}, {}, weights.query_latent, shapes.query_latent, 0);
      floats(prefix + "q_a_layernorm.weight", weights.q_a_norm, {rank});
      part(prefix + "q_b_proj.weight", {all_heads * qk, rank}, rows_of(of_heads(qk)), weights.q_b, shapes.q_b, 0);
    } else {
      part(prefix + "q_proj.weight", {all_heads * qk, hidden}, rows_of(of_heads(qk)), weights.query_latent,
           shapes.query_latent, 0);
    }
    part(prefix + "kv_a_proj_with_mqa.weight", {latent + config_.qk_rope_head_dim, hidden}, {}, weights.query_latent,
         shapes.query_latent, shapes.query_rows);
    floats(prefix + "kv_a_layernorm.weight", weights.kv_a_norm, {latent});

    weights.w_uk.resize(heads.size());
    weights.w_uv.resize(heads.size());
    request(prefix + "kv_b_proj.weight", {all_heads * kv, latent}, true,
            [packer = packer_, &weights, rows = of_heads(kv)](const WeightSource& source) {
              return packer->pack_kv_b(weights, source.slice_rows(rows.begin, rows.size()));
            });
    const WeightFormat format = packer_->announced_format(true);
    expect(heads.size() * kv * latent, format);
    expect(heads.size() * kv * latent, packer_->absorbed_format(format));

    part(prefix + "o_proj.weight", {hidden, all_heads * config_.v_head_dim}, cols_of(of_heads(config_.v_head_dim)),
         weights.o, shapes.o, 0);
  }

  void experts(const std::string& prefix, MoeWeights& weights) {
    const int64_t count = config_.gate.experts, width = config_.moe_intermediate_size;
    floats(prefix + "gate.weight", weights.router, {count, config_.hidden_size});
    if (config_.gate.method == GateMethod::kNoAuxTc)
      floats(prefix + "gate.e_score_correction_bias", weights.correction_bias, {count});
    if (config_.n_shared_experts > 0)
      feed_forward(prefix + "shared_experts.", weights.shared, config_.n_shared_experts * width, shapes_.shared);
    const Range local = shapes_.experts;
    weights.first_expert = static_cast<int32_t>(local.begin);
    weights.experts.resize(local.size());
    const bool mine = mine_;
    FeedForwardWeights elsewhere;
    for (int64_t expert = 0; expert < count; ++expert) {
      mine_ = mine && local.contains(expert);
      feed_forward(prefix + fmt::format("experts.{}.", expert),
                   mine_ ? weights.experts[expert - local.begin] : elsewhere, width, shapes_.expert);
    }
    mine_ = mine;
  }

  void feed_forward(const std::string& prefix, FeedForwardWeights& weights, int64_t width,
                    const FeedForwardShapes& shapes) {
    const int64_t hidden = config_.hidden_size;
    const Range local = shapes.width;
    const bool mine = mine_;
    mine_ = mine && local.size() > 0;
    part(prefix + "gate_proj.weight", {width, hidden}, rows_of(local), weights.gate_up, shapes.gate_up, 0);
    part(prefix + "up_proj.weight", {width, hidden}, rows_of(local), weights.gate_up, shapes.gate_up, local.size());
    part(prefix + "down_proj.weight", {hidden, width}, cols_of(local), weights.down, shapes.down, 0);
    mine_ = mine;
  }

  // -- Kinds of targets --

  // The rectangle of a stored matrix that is local; an empty range: all.
  struct Cut {
    Range rows, cols;
  };
  static Cut rows_of(Range rows) { return {.rows = rows, .cols = {}}; }
  static Cut cols_of(Range cols) { return {.rows = {}, .cols = cols}; }

  // A cut of the tensor `name`, [stored.out, stored.in], becomes rows of `target` from `first_row` on.
  void part(std::string name, MatrixShape stored, Cut cut, PackedMatrix& target, MatrixShape shape, int64_t first_row,
            bool may_be_quantised = true) {
    if (cut.rows.size() == 0) cut.rows = {0, stored.out};
    if (cut.cols.size() == 0) cut.cols = {0, stored.in};
    request(std::move(name), {stored.out, stored.in}, may_be_quantised,
            [packer = packer_, &target, shape, first_row, cut](const WeightSource& source) {
              return packer->pack(target, shape.out, shape.in, first_row,
                                  source.slice(cut.rows.begin, cut.rows.size(), cut.cols.begin, cut.cols.size()));
            });
    expect(cut.rows.size() * cut.cols.size(), packer_->announced_format(may_be_quantised));
  }

  void floats(std::string name, std::vector<float>& target, std::vector<int64_t> shape) {
    const int64_t count = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
    request(std::move(name), std::move(shape), false, [&target](const WeightSource& source) -> Status {
      target.resize(source.rows * source.cols);
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
    if (mine_) request.write = std::move(write);
  }

  void expect(int64_t weights, WeightFormat format) {
    if (!mine_) return;
    result_.expected_bytes += static_cast<size_t>(static_cast<double>(weights) * bytes_per_weight(format));
  }

  const ModelConfig& config_;
  const ModelShard shard_;
  const ShardShapes shapes_;
  std::shared_ptr<Packer> packer_;
  bool mine_ = true;  // whether the shard holds a part of what is being listed
  DeepseekRequests result_;
};

}  // namespace

DeepseekRequests deepseek_weight_requests(const ModelConfig& config, const ModelOptions& options,
                                          DeepseekWeights& weights) {
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
