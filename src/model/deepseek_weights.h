// Weights of the MLA families (DeepSeek-V2-Lite, V2, V3, R1, Kimi-K2) as they lie in memory.
//
// Plain values owned by the model. They are filled on loader threads through the requests of deepseek_weight_requests,
// each of which writes memory of its own, and are read-only afterwards. Matrices are [out, in]; those that share an
// input are stacked into one, so that one product makes all of their outputs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "checkpoint/model_config.h"
#include "checkpoint/weight_loader.h"
#include "kernels/linear.h"
#include "model/model.h"
#include "tensor/buffer.h"
#include "tensor/dtype.h"

namespace plait {

// `heads`, widths and numbers of experts below are the local ones of the rank's shard. A matrix of which it holds
// nothing has no outputs.
struct MlaWeights {
  // Queries (q_a_proj, or q_proj where there is no q_lora), then kv_a_proj_with_mqa: all that the hidden state feeds.
  kernels::PackedMatrix query_latent;       // [query_rows + kv_lora_rank + qk_rope, hidden]
  std::vector<float> q_a_norm;              // [q_lora_rank]; only with q_lora
  kernels::PackedMatrix q_b;                // [heads * (qk_nope + qk_rope), q_lora_rank]; only with q_lora
  std::vector<float> kv_a_norm;             // [kv_lora_rank]
  kernels::PackedMatrix kv_b;               // [heads * (qk_nope + v), kv_lora_rank], for the expanded form
  std::vector<kernels::PackedMatrix> w_uk;  // heads x [kv_lora_rank, qk_nope]: kv_b's key rows, transposed
  std::vector<kernels::PackedMatrix> w_uv;  // heads x [v, kv_lora_rank]: kv_b's value rows
  kernels::PackedMatrix o;                  // [hidden, heads * v]
};

// A dense layer's FFN, one routed expert, or all shared experts as one of n_shared_experts times the width.
struct FeedForwardWeights {
  kernels::PackedMatrix gate_up;  // [2 * width, hidden]: gate, then up
  kernels::PackedMatrix down;     // [hidden, width]
};

struct MoeWeights {
  std::vector<float> router;                // [n_routed_experts, hidden], float32 whatever is stored
  std::vector<float> correction_bias;       // [n_routed_experts]; only with noaux_tc
  FeedForwardWeights shared;                // only if n_shared_experts > 0
  int32_t first_expert = 0;                 // of the local ones
  std::vector<FeedForwardWeights> experts;  // [local experts]
};

struct LayerWeights {
  std::vector<float> input_norm;  // [hidden]
  MlaWeights attention;
  std::vector<float> post_attention_norm;  // [hidden]
  FeedForwardWeights dense;                // layers without experts
  MoeWeights moe;                          // layers with experts
};

struct DeepseekWeights {
  Range embedding_ids;  // token ids whose rows are local
  Buffer embedding;     // [ids, hidden], embedding_dtype; only in the first pipeline stage
  DType embedding_dtype = DType::kBF16;
  int64_t first_layer = 0;
  std::vector<LayerWeights> layers;  // of this pipeline stage
  std::vector<float> final_norm;     // [hidden]; it and the head only in the last pipeline stage
  Range head_ids;                    // token ids whose logits are local
  kernels::PackedMatrix lm_head;     // [ids, hidden]; the embedding once more if they are tied
};

// Every tensor that the configuration announces, without a `write` where options.shard has no part in it; `weights`
// must stay where it is until all are written. How a matrix is stored follows the tensor that arrives: F32 and F16
// become F32, BF16 stays, FP8 stays with its scales. The matrices of the absorbed form are dequantised to BF16, or to
// F32 where that would lose what float32 activations can see.
struct DeepseekRequests {
  std::vector<WeightRequest> requests;
  size_t expected_bytes = 0;  // of `weights` when all is loaded, if dtypes are as the configuration says
};
DeepseekRequests deepseek_weight_requests(const ModelConfig& config, const ModelOptions& options,
                                          DeepseekWeights& weights);

// Bytes held now.
size_t size_bytes(const MlaWeights& weights);
size_t size_bytes(const FeedForwardWeights& weights);
size_t size_bytes(const DeepseekWeights& weights);

}  // namespace plait
