// What a model says about itself against what it does: bytes and operations of a step, scratch memory.
#include <gtest/gtest.h>

#include "tests/model/model_runner.h"
#include "tests/model/random_checkpoint.h"

namespace plait::testing {
namespace {

using kernels::Activation;
using kernels::Implementation;

// -- Memory
// ---------------------------------------------------------------------------------------------------------------

TEST(Scratch, StaysWithinWhatIsPlanned) {
  const Variant variants[] = {{.name = "BF16", .stored = Stored::kBF16},
                              {.name = "FP8", .stored = Stored::kFp8, .configure = set_fp8},
                              {.name = "WithoutQueryLatent", .configure = set_v2_lite},
                              {.name = "Dense", .configure = [](ModelConfig& c) { c.first_k_dense_replace = 3; }}};
  for (const Variant& variant : variants) {
    ModelConfig config = tiny_config();
    variant.configure(config);
    const TensorSet weights = random_checkpoint(config, variant, 5);
    for (const int64_t rows : {1, 37, 400}) {
      for (const int64_t expanded_until : {rows, rows / 2, int64_t{0}}) {
        ModelRunner runner(config, weights, {Implementation::kFast, Activation::kBFloat16});
        TestSequence sequence;
        runner.append(sequence, random_tokens(config, rows), expanded_until, 1);
        EXPECT_LE(runner.scratch_bytes(), runner.model().scratch_bytes(rows, rows))
            << variant.name << " with " << rows << " rows, expanded until " << expanded_until;
      }
    }
  }
}

// -- Cost
// -----------------------------------------------------------------------------------------------------------------

// Weights of the tensors whose names contain one of `parts`.
double count_weights(const ModelConfig& config, std::initializer_list<const char*> parts) {
  double count = 0;
  for (const WeightRequest& request : make_model(config, {}).value()->weight_requests())
    for (const char* part : parts)
      if (request.shape.size() == 2 && request.name.find(part) != std::string::npos)
        count += static_cast<double>(request.shape[0] * request.shape[1]);
  return count;
}

TEST(Cost, CountsWhatADecodeStepMustTouch) {
  const ModelConfig config = tiny_config();
  const TensorSet weights = random_checkpoint(config, {.stored = Stored::kBF16}, 6);
  ModelRunner runner(config, weights, {Implementation::kReference, Activation::kBFloat16});
  constexpr int64_t kPosition = 9;
  StepBuilder builder(1);
  builder.add(std::vector<int32_t>{1}, kPosition, std::vector<int32_t>{0, 1, 2}, /*expanded_until=*/kPosition, 1);
  const Step step = std::move(builder).build();

  const int64_t expert_layers = 2, k = config.gate.experts_per_token;
  const double always = count_weights(config, {"self_attn", "shared_experts", "layers.0.mlp", "lm_head"});
  const double router = count_weights(config, {"mlp.gate.weight"});
  const double expert = 3.0 * config.hidden_size * config.moe_intermediate_size;
  const int64_t latent_row = config.kv_lora_rank + config.qk_rope_head_dim;
  const StepCost::Part cost = runner.model().cost(step, expert_layers * k).total();
  EXPECT_DOUBLE_EQ(cost.weight_bytes, 2 * (always + expert_layers * k * expert + config.hidden_size) + 4 * router);
  EXPECT_DOUBLE_EQ(cost.kv_bytes, 3.0 * latent_row * 2 * (kPosition + 2));  // 3 layers; the new row is written and read
  const double attention = 3.0 * config.num_attention_heads * (latent_row + config.kv_lora_rank) * (kPosition + 1);
  EXPECT_DOUBLE_EQ(cost.flops, 2 * (always + router + expert_layers * k * expert + attention));
  // One row of uniform routing meets exactly k experts.
  EXPECT_NEAR(runner.model().cost(step, 0).total().weight_bytes, cost.weight_bytes, 1);
}

TEST(Cost, CountsPrefillInExpandedForm) {
  const ModelConfig config = tiny_config();
  const TensorSet weights = random_checkpoint(config, {.stored = Stored::kBF16}, 6);
  ModelRunner runner(config, weights, {Implementation::kReference, Activation::kBFloat16});
  constexpr int64_t kRows = 10;
  StepBuilder builder(1);
  builder.add(random_tokens(config, kRows), 0, std::vector<int32_t>{0, 1, 2}, kRows, 1);
  const StepCost::Part cost = runner.model().cost(std::move(builder).build(), 2 * config.gate.experts).total();

  const double head = count_weights(config, {"lm_head"});
  const double always = count_weights(config, {"self_attn", "shared_experts", "layers.0.mlp"});
  const double router = count_weights(config, {"mlp.gate.weight"});
  const double expert = 3.0 * config.hidden_size * config.moe_intermediate_size;
  EXPECT_DOUBLE_EQ(cost.weight_bytes,
                   2 * (always + head + 2 * config.gate.experts * expert + kRows * config.hidden_size) + 4 * router);
  const double scores =
      3.0 * config.num_attention_heads * (config.qk_head_dim() + config.v_head_dim) * 55;  // 1 + ... + 10
  EXPECT_DOUBLE_EQ(cost.flops,
                   2 * (kRows * (always + router + 2 * config.gate.experts_per_token * expert) + head + scores));
}

TEST(Cost, EachPartTakesTheLongerOfItsTwoSides) {
  const StepCost cost{.parts = {{.weight_bytes = 10, .kv_bytes = 2, .flops = 5}, {.weight_bytes = 1, .flops = 40}}};
  EXPECT_DOUBLE_EQ(cost.least_seconds(2, 4), 12.0 / 2 + 40.0 / 4);
  EXPECT_DOUBLE_EQ(cost.least_seconds(1e9, 4), 45.0 / 4) << "arithmetic alone";
  EXPECT_DOUBLE_EQ(cost.least_seconds(2, 1e9), 13.0 / 2) << "bytes alone";
}

TEST(Cost, IsNothingForAnIdleStep) {
  const auto model = make_model(tiny_config(), {}).value();
  EXPECT_EQ(model->cost(StepBuilder(0).build(), 0).total().weight_bytes, 0);
}

}  // namespace
}  // namespace plait::testing
