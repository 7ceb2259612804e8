// The goldens of this repository: tiny checkpoints of every MLA family and the demo model, with the answers of an
// independent implementation in float32 (transformers 5.17).
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/model_config.h"
#include "tests/model/tensor_set.h"

namespace plait::testing {

struct GoldenPrompt {
  std::vector<int32_t> input_ids;  // [tokens]
  std::vector<float> logits;       // [logit_rows, vocab], of the last rows
  int64_t logit_rows = 0;
  std::map<int64_t, std::vector<int32_t>> routed;  // layer -> [tokens, k], unordered within a row
  std::map<int64_t, std::vector<float>> hidden;    // layer -> [tokens, hidden]; prompt 0 only
  std::vector<int32_t> greedy;                     // continuation

  std::span<const float> logit_row(int64_t i) const {
    const size_t vocab = logits.size() / logit_rows;
    return {logits.data() + i * vocab, vocab};
  }
  // Largest minus smallest logit: what errors are relative to.
  double range() const;
};

struct GoldenFolder {
  std::string name;
  ModelConfig config;
  TensorSet weights;
  std::vector<GoldenPrompt> prompts;

  static GoldenFolder read(const std::string& name);
};

// Folder names, "v3" or "demo-fp8".
std::vector<std::string> golden_names();
std::filesystem::path golden_path(const std::string& name);

}  // namespace plait::testing
