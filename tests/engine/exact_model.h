// Small models of few-bit weights, and what one rank computes with them: the bits that ranks together have to give.
//
// Numbers of heads and experts are chosen so that every arrangement of up to 8 ranks is valid for one of the models.
// What one rank computes is Model::forward() of a whole model, one sequence at a time. Built once, then read by any
// thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "checkpoint/model_config.h"
#include "kernels/context.h"
#include "model/model.h"
#include "tests/model/tensor_set.h"
#include "topology/parallel_config.h"

namespace plait::testing {

enum class ExactFamily {
  kV2Lite,  // softmax gate, queries from the hidden state, two shared experts, one dense layer
  kV3,      // sigmoid gate with groups and bias, query latents, one shared expert, two dense layers
};

struct ExactSequence {
  std::vector<int32_t> tokens;
  int64_t prompt_tokens = 0;  // of tokens; these attend in expanded form
  std::vector<float> logits;  // [tokens, vocabulary], one rank's

  int64_t length() const { return std::ssize(tokens); }
};

struct ExactModel {
  ModelConfig config;
  TensorSet weights;
  std::vector<ExactSequence> sequences;

  // Of `heads` and twice as many experts.
  static ExactModel make(ExactFamily family, int64_t heads, int64_t layers);
  // Sequences from 0 to `count` on one rank: prompts in one step, then a token at a time.
  std::vector<std::vector<float>> one_rank(size_t count) const;
  std::span<const float> expected(int sequence, int64_t position) const;
};

// The model that `parallel` is valid for. Made when it is first asked for.
const ExactModel& exact_model(ExactFamily family, const ParallelConfig& parallel);

inline ModelOptions exact_options() {
  return {kernels::Implementation::kExact, kernels::Activation::kFloat32, {}};
}

}  // namespace plait::testing
