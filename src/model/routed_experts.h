// The experts that the router chose for a token, as they are kept and sent: compact rows.
//
// A row is [layers with experts, experts_per_token] ids in the router's order, one byte each for up to 256 experts,
// else two (little-endian). Layers without experts have no place in it. Plain value.
#pragma once

#include <cstdint>
#include <vector>

#include "checkpoint/model_config.h"

namespace plait {

struct RoutedExpertShape {
  int64_t layers = 0;                  // of the model
  std::vector<int64_t> expert_layers;  // those with experts, ascending
  int64_t experts_per_token = 0;
  int64_t id_bytes = 1;

  static RoutedExpertShape of(const ModelConfig& config) {
    constexpr int64_t kMostInAByte = 256;
    RoutedExpertShape shape;
    shape.layers = config.num_hidden_layers;
    for (int64_t layer = 0; layer < shape.layers; ++layer)
      if (config.layer_has_experts(layer)) shape.expert_layers.push_back(layer);
    shape.experts_per_token = config.gate.experts_per_token;
    shape.id_bytes = config.gate.experts <= kMostInAByte ? 1 : 2;
    return shape;
  }
  int64_t row_ids() const { return static_cast<int64_t>(expert_layers.size()) * experts_per_token; }
  int64_t row_bytes() const { return row_ids() * id_bytes; }
};

}  // namespace plait
