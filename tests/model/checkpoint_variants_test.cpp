// What the goldens cannot show: tiny random checkpoints in formats and configurations of their own, against the
// double-precision oracle, in both implementations and both forms of attention.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/model/mla_oracle.h"
#include "tests/model/model_runner.h"
#include "tests/model/random_checkpoint.h"
#include "tests/support/effort.h"

namespace plait::testing {
namespace {

using kernels::Activation;
using kernels::Implementation;

// Float32 sums against double ones; as in goldens_test.cpp, relative to the range of the logits.
constexpr double kTolerance = 2e-5;

bool ends_with_any(const std::string& name, std::initializer_list<const char*> endings) {
  return std::any_of(endings.begin(), endings.end(), [&](const char* ending) { return name.ends_with(ending); });
}

double worst_error(const Recorded& ours, const MlaOracle::Result& exact) {
  EXPECT_EQ(ours.rows(), static_cast<int64_t>(exact.logits.size()));
  double worst = 0, low = 0, high = 0;
  for (int64_t row = 0; row < ours.rows(); ++row) {
    for (size_t i = 0; i < exact.logits[row].size(); ++i) {
      const double difference = std::abs(ours.row(row)[i] - exact.logits[row][i]);
      worst = std::isnan(difference) ? std::numeric_limits<double>::infinity() : std::max(worst, difference);
      low = std::min(low, exact.logits[row][i]);
      high = std::max(high, exact.logits[row][i]);
    }
  }
  return worst / (high - low);
}

void expect_same_experts(const Recorded& ours, const MlaOracle::Result& exact, int64_t k) {
  ASSERT_EQ(ours.routed.size(), exact.routed.size());
  for (const auto& [layer, rows] : exact.routed) {
    for (size_t row = 0; row < rows.size(); ++row) {
      const auto begin = ours.routed.at(layer).begin() + static_cast<int64_t>(row) * k;
      std::vector<int32_t> ids(begin, begin + k);
      std::sort(ids.begin(), ids.end());
      EXPECT_EQ(ids, rows[row]) << "layer " << layer << " row " << row;
    }
  }
}

std::vector<Variant> variants() {
  // Latents so small that a norm's epsilon decides their size.
  const auto small_latents = [](const std::string& name, std::vector<float>& values) {
    if (ends_with_any(name, {"q_a_proj.weight", "kv_a_proj_with_mqa.weight"}))
      for (float& value : values) value *= 0.01f;
  };
  return {
      {.name = "F32"},
      {.name = "F16", .stored = Stored::kF16},
      {.name = "BF16", .stored = Stored::kBF16},
      {.name = "FP8", .stored = Stored::kFp8, .configure = set_fp8},
      {.name = "FP8PowerOfTwoScales",
       .stored = Stored::kFp8PowerOfTwo,
       .configure = [](ModelConfig& config) { set_fp8(config), config.power_of_two_scales = true; }},
      {.name = "FP8ButOutputProjection", .stored = Stored::kFp8, .configure = set_fp8, .not_quantised = "o_proj"},
      {.name = "FP8ButKvB", .stored = Stored::kFp8, .configure = set_fp8, .not_quantised = "kv_b_proj"},
      {.name = "FP8ButOneLayersExperts", .stored = Stored::kFp8, .configure = set_fp8, .not_quantised = "layers.2.mlp"},
      {.name = "WithoutQueryLatent", .configure = set_v2_lite},
      {.name = "FP8WithoutQueryLatent",
       .stored = Stored::kFp8,
       .configure = [](ModelConfig& config) { set_fp8(config), set_v2_lite(config); }},
      {.name = "ExpertsInEverySecondLayer",
       .configure = [](ModelConfig& config) { config.num_hidden_layers = 5, config.moe_layer_freq = 2; }},
      {.name = "ExpertsInEveryThirdLayerBehindTwoDense",
       .configure =
           [](ModelConfig& config) {
             config.num_hidden_layers = 7, config.moe_layer_freq = 3, config.first_k_dense_replace = 2;
           }},
      {.name = "NoSharedExperts", .configure = [](ModelConfig& config) { config.n_shared_experts = 0; }},
      {.name = "AllLayersDense", .configure = [](ModelConfig& config) { config.first_k_dense_replace = 3; }},
      {.name = "NoDenseLayers", .configure = [](ModelConfig& config) { config.first_k_dense_replace = 0; }},
      {.name = "TiedEmbeddings", .configure = [](ModelConfig& config) { config.tie_word_embeddings = true; }},
      {.name = "TiedEmbeddingsF16",
       .stored = Stored::kF16,
       .configure = [](ModelConfig& config) { config.tie_word_embeddings = true; }},
      {.name = "LayerNormEps", .configure = [](ModelConfig& config) { config.rms_norm_eps = 0.5; }},
      {.name = "LatentNormEps",
       .configure = [](ModelConfig& config) { config.rms_norm_eps = 1e-2; },
       .adjust = small_latents},
      {.name = "NoYarn", .configure = [](ModelConfig& config) { config.rope = {}; }},
      {.name = "YarnAmplitude",
       .configure = [](ModelConfig& config) { config.rope.mscale = 0.4, config.rope.mscale_all_dim = 1.2; }},
      {.name = "GroupsWithNegativeChoices",
       .adjust =
           [](const std::string& name, std::vector<float>& values) {
             if (name.ends_with("e_score_correction_bias"))
               for (float& value : values) value -= 3;
           }},
      {.name = "OneExpertPerToken", .configure = [](ModelConfig& config) { config.gate.experts_per_token = 1; }},
      {.name = "OneHead", .configure = [](ModelConfig& config) { config.num_attention_heads = 1; }},
  };
}

class CheckpointVariant : public ::testing::TestWithParam<Variant> {
 protected:
  CheckpointVariant() : config_(tiny_config()) {
    GetParam().configure(config_);
    weights_ = random_checkpoint(config_, GetParam(), 1);
  }
  ModelConfig config_;
  TensorSet weights_;
};

TEST_P(CheckpointVariant, AgreesWithTheOracle) {
  const std::vector<int32_t> tokens = random_tokens(config_, 21);
  const MlaOracle::Result exact = MlaOracle(config_, weights_).forward(tokens);
  for (const Implementation implementation : {Implementation::kReference, Implementation::kFast}) {
    ModelRunner runner(config_, weights_, {implementation, Activation::kFloat32});
    for (const int64_t expanded_until : {21, 13, 0}) {
      TestSequence sequence;
      const Recorded ours = runner.append_in_chunks(sequence, tokens, 8, expanded_until);
      runner.release(sequence);
      EXPECT_LE(worst_error(ours, exact), kTolerance) << "expanded until " << expanded_until;
      expect_same_experts(ours, exact, config_.gate.experts_per_token);
    }
  }
}

// With BF16 activations nothing is exact, but nothing may be lost either: the tolerance of bfloat16_test.cpp, on the
// rows before the first one that went to another expert.
TEST_P(CheckpointVariant, IsCloseWithBFloat16Activations) {
  const std::vector<int32_t> tokens = random_tokens(config_, 21);
  MlaOracle::Result exact = MlaOracle(config_, weights_).forward(tokens);
  ModelRunner runner(config_, weights_, {Implementation::kFast, Activation::kBFloat16});
  TestSequence sequence;
  Recorded ours = runner.append(sequence, tokens, 10);
  size_t comparable = tokens.size();
  const int64_t k = config_.gate.experts_per_token;
  for (const auto& [layer, rows] : exact.routed) {
    for (size_t row = 0; row < rows.size(); ++row) {
      const auto begin = ours.routed.at(layer).begin() + static_cast<int64_t>(row) * k;
      std::vector<int32_t> ids(begin, begin + k);
      std::sort(ids.begin(), ids.end());
      if (ids != rows[row]) comparable = std::min(comparable, row);
    }
  }
  exact.logits.resize(comparable);
  ours.logits.resize(comparable * config_.vocab_size);
  if (comparable == 0) return;
  EXPECT_LE(worst_error(ours, exact), 0.03) << comparable << " rows";
}

INSTANTIATE_TEST_SUITE_P(All, CheckpointVariant, ::testing::ValuesIn(variants()),
                         [](const auto& info) { return info.param.name; });

// Keys of zeros, all in one page that fills the page table, stand in for 120,000 computed ones: they score 0 and weigh
// nothing next to the row's own tokens. Large queries make the scores sensitive to the angle between near positions:
// angles in float32 would be wrong by 0.004 here, and the logits by a percent.
TEST(LongContext, PositionsPastAHundredThousand) {
  constexpr int64_t kFirst = 120000, kPageTokens = 16, kTokens = 20;
  ModelConfig config = tiny_config();
  Variant variant;
  variant.adjust = [](const std::string& name, std::vector<float>& values) {
    if (name.ends_with("q_b_proj.weight"))
      for (float& value : values) value *= 8;
  };
  const TensorSet weights = random_checkpoint(config, variant, 2);
  const std::vector<int32_t> tokens = random_tokens(config, kTokens);
  MlaOracle oracle(config, weights);
  oracle.fill_cache_with_zeros(kFirst);
  const MlaOracle::Result exact = oracle.forward(tokens);

  for (const Implementation implementation : {Implementation::kReference, Implementation::kFast}) {
    if (kSanitized && implementation == Implementation::kReference) continue;  // plain loops, minutes of them
    for (const int64_t expanded_until : {kFirst + kTokens, int64_t{0}}) {
      ModelRunner runner(config, weights, {implementation, Activation::kFloat32}, kPageTokens);
      runner.fill_page_with_zeros(0);
      std::vector<int32_t> pages(kFirst / kPageTokens, 0);
      pages.insert(pages.end(), {7, 3});
      StepBuilder builder(1);
      builder.add(tokens, kFirst, pages, expanded_until, kTokens);
      const Recorded ours = runner.run(std::move(builder).build());
      const double error = worst_error(ours, exact);
      EXPECT_LE(error, kTolerance);
      fmt::print("[ oracle   ] positions from {}: {:.1e} of the range\n", kFirst, error);
    }
  }
}

// -- Loading
// --------------------------------------------------------------------------------------------------------------

Status load(const ModelConfig& config, const TensorSet& weights) {
  const auto model = make_model(config, {}).value();
  return weights.load(*model);
}

TEST(Loading, RefusesToFinishBeforeItsWeightsAreThere) {
  const auto model = make_model(tiny_config(), {}).value();
  model->weight_requests();
  EXPECT_TRUE(model->finish_loading().has_error());
}

TEST(Loading, RefusesPartsOfOneProductInDifferentFormats) {
  ModelConfig config = tiny_config();
  set_fp8(config);
  int tried = 0;
  for (const char* name : {"layers.1.mlp.experts.3.up_proj", "layers.0.mlp.gate_proj", "layers.2.self_attn.q_a_proj",
                           "layers.1.mlp.experts.3."}) {
    const TensorSet weights = random_checkpoint(config, {.stored = Stored::kFp8, .not_quantised = name}, 3);
    const Status status = load(config, weights);
    ASSERT_TRUE(status.has_error()) << name;
    EXPECT_EQ(status.error().kind, ErrorKind::kUnsupported);
    ++tried;
  }
  fmt::print("[ oracle   ] {} mixed checkpoints refused\n", tried);
}

TEST(Loading, AsksForNoHeadIfEmbeddingsAreTied) {
  ModelConfig config = tiny_config();
  config.tie_word_embeddings = true;
  for (const WeightRequest& request : make_model(config, {}).value()->weight_requests())
    EXPECT_NE(request.name, "lm_head.weight");
}

TEST(Loading, HoldsWhatItAnnounces) {
  for (const Variant& variant : variants()) {
    if (variant.not_quantised != Variant().not_quantised) continue;  // not what its configuration says
    ModelConfig config = tiny_config();
    variant.configure(config);
    config.weight_dtype = variant.stored == Stored::kF32   ? DType::kF32
                          : variant.stored == Stored::kF16 ? DType::kF16
                                                           : DType::kBF16;
    const auto model = make_model(config, {.implementation = Implementation::kReference}).value();
    model->weight_requests();
    const size_t announced = model->weight_bytes();
    EXPECT_FALSE(random_checkpoint(config, variant, 4).load(*model).has_error());
    // The difference: matrices are padded to whole panels and FP8 scales are kept per row.
    EXPECT_NEAR(static_cast<double>(announced) / static_cast<double>(model->weight_bytes()), 1, 0.2) << variant.name;
  }
}

}  // namespace
}  // namespace plait::testing
