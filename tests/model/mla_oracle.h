// The MLA families in double precision, written from the formulas and sharing no code with src/: the oracle for
// checkpoints that no golden covers. One sequence, plain loops, absorbed attention over a growing cache.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/model_config.h"
#include "tests/model/tensor_set.h"

namespace plait::testing {

class MlaOracle {
 public:
  using Vector = std::vector<double>;

  // What decoding remembers of one layer, a row per position.
  struct LayerCache {
    std::vector<Vector> latent;    // after the norm
    std::vector<Vector> rope_key;  // after the rotation
  };
  struct Result {
    std::vector<Vector> logits;                                   // [tokens][vocab]
    std::map<int64_t, std::vector<std::vector<int32_t>>> routed;  // layer -> [tokens][k], ascending ids
  };

  MlaOracle(const ModelConfig& config, const TensorSet& weights);

  // Continues the sequence in the cache.
  Result forward(std::span<const int32_t> tokens);
  // Puts zeros at positions [0, tokens) of an empty cache.
  void fill_cache_with_zeros(int64_t tokens);

 private:
  Vector layer(int64_t index, Vector x, int64_t position, Result& result);
  Vector attention(int64_t index, const Vector& x, int64_t position);
  Vector feed_forward(const std::string& prefix, const Vector& x) const;
  std::vector<int32_t> choose_experts(const Vector& scores, const std::string& prefix) const;
  Vector rotate(Vector x, int64_t position) const;
  Vector product(const std::string& name, const Vector& x) const;
  Vector norm(const std::string& name, const Vector& x, double eps) const;

  const ModelConfig config_;
  mutable std::map<std::string, Vector> values_;  // tensors decoded so far
  const TensorSet& weights_;
  std::vector<LayerCache> caches_;
};

}  // namespace plait::testing
