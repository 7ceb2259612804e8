// The matrices of one rank's part of a model, before anything is loaded: what the loader cuts out of the stored ones,
// and what kernels are made for. Plain values; one pure function, so that there is no second formula.
#pragma once

#include <cstdint>

#include "checkpoint/model_config.h"
#include "model/shard.h"

namespace plait {

struct MatrixShape {
  int64_t out = 0, in = 0;

  bool operator==(const MatrixShape&) const = default;
};

struct AttentionShapes {
  Range heads;               // local ones
  int64_t query_rows = 0;    // of query_latent, before the latent's
  MatrixShape query_latent;  // q_a_proj (q_proj without q_lora), then kv_a_proj_with_mqa
  MatrixShape q_b;           // nothing without q_lora
  MatrixShape kv_b;
  MatrixShape o;
};

struct FeedForwardShapes {
  Range width;          // local part
  MatrixShape gate_up;  // gate, then up
  MatrixShape down;
};

struct ShardShapes {
  AttentionShapes attention;  // of each layer
  FeedForwardShapes dense;    // of layers without experts
  FeedForwardShapes shared;   // all shared experts as one; of layers with experts
  FeedForwardShapes expert;   // each routed expert
  Range experts;              // local ones
  Range head_ids;             // token ids whose logits are local
  MatrixShape lm_head;        // in the last pipeline stage
};

ShardShapes shard_shapes(const ModelConfig& config, const ModelShard& shard);

}  // namespace plait
