// Tiny random checkpoints in formats and configurations that no golden has.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "checkpoint/model_config.h"
#include "tests/model/tensor_set.h"

namespace plait::testing {

enum class Stored { kF32, kF16, kBF16, kFp8, kFp8PowerOfTwo };

struct Variant {
  std::string name;
  Stored stored = Stored::kF32;
  std::function<void(ModelConfig&)> configure = [](ModelConfig&) {};
  // Called with every tensor before it is stored.
  std::function<void(const std::string& name, std::vector<float>& values)> adjust = [](const auto&, auto&) {};
  // Tensors of an FP8 checkpoint that stay BF16.
  std::string not_quantised = "nothing";
};

// A DeepSeek-V3 of three layers and a few thousand weights.
ModelConfig tiny_config();
// The same, wider than an FP8 scale block in every direction, and nowhere a multiple of one.
void set_fp8(ModelConfig& config);
// DeepSeek-V2-Lite's ways: no query latent, softmax gate without groups, two shared experts.
void set_v2_lite(ModelConfig& config);

// Every tensor that a model of this configuration asks for.
TensorSet random_checkpoint(const ModelConfig& config, const Variant& variant, uint32_t seed);
std::vector<int32_t> random_tokens(const ModelConfig& config, int64_t count);

}  // namespace plait::testing
