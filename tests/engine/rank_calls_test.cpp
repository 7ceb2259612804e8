// The list of a rank's calls against what one works out by hand.
#include "engine/rank_calls.h"

#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/agreed_rows.h"
#include "model/model_facts.h"
#include "tests/engine/manifest_layouts.h"
#include "topology/rules.h"

namespace plait {
namespace {

using cuda::GemmRows;
using cuda::GemmShape;
using cuda::QuantizeShape;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Result<std::vector<RankCall>> try_calls(const ModelConfig& config, const ParallelConfig& asked,
                                        const CallLimits& limits = {}, int rank = 0) {
  const ModelFacts facts = model_facts(config);
  const ParallelVerdict verdict = judge(asked, &facts);
  PLAIT_RETURN_IF_ERROR(verdict.status());
  const Topology topology(verdict.config);
  PLAIT_ASSIGN_OR_RETURN(const std::vector<Plan> plans, make_step_plans(topology, facts));
  return rank_calls(config, topology, plans, limits, rank);
}

std::vector<RankCall> calls(const ModelConfig& config, const ParallelConfig& asked, const CallLimits& limits = {},
                            int rank = 0) {
  auto made = try_calls(config, asked, limits, rank);
  EXPECT_FALSE(made.has_error()) << made.error().message;
  return made.has_error() ? std::vector<RankCall>() : *made;
}

std::string text_of(const GemmShape& shape) {
  constexpr const char* kForms[] = {"dense", "contiguous", "masked"};
  return fmt::format("{} {} {}x{}{}{}", shape.format == cuda::GemmFormat::kFp8 ? "fp8" : "bf16",
                     kForms[static_cast<int>(shape.rows)], shape.n, shape.k,
                     shape.groups > 1 ? fmt::format(" g{}", shape.groups) : "",
                     shape.result == cuda::GemmResult::kF32 ? " to f32" : "");
}
std::string text_of(const QuantizeShape& shape) {
  return fmt::format("quantise {}{}{}", shape.gated ? "swiglu " : "", shape.k,
                     shape.groups > 0 ? fmt::format(" g{}", shape.groups) : "");
}

// "layers 0-60 attention.q_b: fp8 dense 24576x1536, prefill 1-256, decode 1-32"
std::vector<std::string> texts(const std::vector<RankCall>& calls) {
  std::vector<std::string> all;
  for (const RankCall& call : calls) {
    std::string text = fmt::format("{}: {}", describe(call),
                                   std::visit([](const auto& shape) { return text_of(shape); }, call.operation));
    for (const ReachableRows& rows : call.rows) {
      text += fmt::format(", {} {}-{}", rows.decode ? "decode" : "prefill", rows.first, rows.last);
      if (rows.multiple > 1) text += fmt::format(" by {}", rows.multiple);
    }
    all.push_back(std::move(text));
  }
  return all;
}

std::set<RankMatrix> matrices(const std::vector<RankCall>& calls) {
  std::set<RankMatrix> found;
  for (const RankCall& call : calls) found.insert(call.matrix);
  return found;
}

template <typename Holds>
bool any_product(const std::vector<RankCall>& calls, const Holds& holds) {
  return std::any_of(calls.begin(), calls.end(), [&](const RankCall& call) {
    const auto* shape = std::get_if<GemmShape>(&call.operation);
    return shape && holds(*shape);
  });
}

bool has_form(const std::vector<RankCall>& calls, GemmRows form) {
  return any_product(calls, [&](const GemmShape& shape) { return shape.rows == form; });
}

const ParallelConfig kExperts{
    .tp_size = 8, .dp_size = 8, .enable_dp_attention = true, .ep_size = 8, .moe_a2a_backend = MoeA2a::kAllToAll};

// 2048 prompt tokens and 256 requests are 256 and 32 for each data-parallel rank. Experts get the tokens of all eight:
// at most 2048 * 8 rows, of 32 experts each with an unfinished block: 32 + (16384 - 32) / 128 blocks of 128.
TEST(RankCalls, OfDeepseekV3WithDataParallelAttention) {
  EXPECT_THAT(texts(calls(testing::deepseek_v3(), kExperts)),
              ElementsAre("layers 0-60 attention.query_latent (input): quantise 7168, prefill 1-256, decode 1-32",
                          "layers 0-60 attention.query_latent: fp8 dense 2112x7168, prefill 1-256, decode 1-32",
                          "layers 0-60 attention.q_b (input): quantise 1536, prefill 1-256, decode 1-32",
                          "layers 0-60 attention.q_b: fp8 dense 24576x1536, prefill 1-256, decode 1-32",
                          "layers 0-60 attention.kv_b (input): quantise 512, prefill 1-256",
                          "layers 0-60 attention.kv_b: fp8 dense 32768x512, prefill 1-256",
                          "layers 0-60 attention.o (input): quantise 16384, prefill 1-256, decode 1-32",
                          "layers 0-60 attention.o: fp8 dense 7168x16384, prefill 1-256, decode 1-32",
                          "layers 0-2 dense.gate_up (input): quantise 7168, prefill 1-2048, decode 1-256",
                          "layers 0-2 dense.gate_up: fp8 dense 4608x7168, prefill 1-2048, decode 1-256",
                          "layers 0-2 dense.down (input): quantise swiglu 2304, prefill 1-2048, decode 1-256",
                          "layers 0-2 dense.down: fp8 dense 7168x2304, prefill 1-2048, decode 1-256",
                          "layers 3-60 shared.gate_up (input): quantise 7168, prefill 1-256, decode 1-32",
                          "layers 3-60 shared.gate_up: fp8 dense 4096x7168, prefill 1-256, decode 1-32",
                          "layers 3-60 shared.down (input): quantise swiglu 2048, prefill 1-256, decode 1-32",
                          "layers 3-60 shared.down: fp8 dense 7168x2048, prefill 1-256, decode 1-32",
                          "layers 3-60 router: bf16 dense 256x7168 to f32, prefill 1-256, decode 1-32",
                          "layers 3-60 experts.gate_up (input): quantise 7168, prefill 1-256, decode 1-32",
                          "layers 3-60 experts.gate_up: fp8 contiguous 4096x7168 g32, prefill 128-20352 by 128",
                          "layers 3-60 experts.down (input): quantise swiglu 2048, prefill 128-20352 by 128",
                          "layers 3-60 experts.down: fp8 contiguous 7168x2048 g32, prefill 128-20352 by 128",
                          "lm_head: bf16 dense 16160x7168 to f32, prefill 1-384, decode 1-256",
                          "layers 3-60 experts.gate_up: fp8 masked 4096x7168 g32, decode 1-8",
                          "layers 3-60 experts.down (input): quantise swiglu 2048 g32, decode 1-8",
                          "layers 3-60 experts.down: fp8 masked 7168x2048 g32, decode 1-8"));
}

// BF16 without q_lora: nothing is quantised, and there is one projection of the hidden state.
TEST(RankCalls, OfDeepseekV2LiteOnOneRank) {
  EXPECT_THAT(texts(calls(testing::deepseek_v2_lite(), {})),
              ElementsAre("layers 0-26 attention.query_latent: bf16 dense 3648x2048, prefill 1-2048, decode 1-256",
                          "layers 0-26 attention.kv_b: bf16 dense 4096x512, prefill 1-2048",
                          "layers 0-26 attention.o: bf16 dense 2048x2048, prefill 1-2048, decode 1-256",
                          "layer 0 dense.gate_up: bf16 dense 21888x2048, prefill 1-2048, decode 1-256",
                          "layer 0 dense.down: bf16 dense 2048x10944, prefill 1-2048, decode 1-256",
                          "layers 1-26 router: bf16 dense 64x2048 to f32, prefill 1-2048, decode 1-256",
                          "layers 1-26 shared.gate_up: bf16 dense 5632x2048, prefill 1-2048, decode 1-256",
                          "layers 1-26 shared.down: bf16 dense 2048x2816, prefill 1-2048, decode 1-256",
                          "layers 1-26 experts.gate_up: bf16 contiguous 2816x2048 g64, prefill 768-20352 by 128",
                          "layers 1-26 experts.down: bf16 contiguous 2048x1408 g64, prefill 768-20352 by 128",
                          "lm_head: bf16 dense 102400x2048 to f32, prefill 1-384, decode 1-256",
                          "layers 1-26 experts.gate_up: bf16 masked 2816x2048 g64, decode 1-24",
                          "layers 1-26 experts.down: bf16 masked 2048x1408 g64, decode 1-24"));
}

TEST(RankCalls, AStageHasItsLayersOnly) {
  std::multiset<int64_t> layers;
  for (int stage = 0; stage < 4; ++stage) {
    const auto made = calls(testing::deepseek_v3(), {.tp_size = 8, .pp_size = 4}, {}, stage * 8);
    const std::set<RankMatrix> found = matrices(made);
    EXPECT_EQ(found.contains(RankMatrix::kDenseGateUp), stage == 0);
    EXPECT_EQ(found.contains(RankMatrix::kHead), stage == 3);
    EXPECT_TRUE(found.contains(RankMatrix::kExpertDown));
    for (const RankCall& call : made)
      if (call.matrix == RankMatrix::kOutput && std::holds_alternative<GemmShape>(call.operation))
        layers.insert(call.layers.begin(), call.layers.end());
  }
  EXPECT_EQ(layers.size(), 61U);
  EXPECT_EQ(*layers.begin(), 0);
  EXPECT_EQ(*layers.rbegin(), 60);
}

TEST(RankCalls, ANodeThatOnlyReadsPromptsNeverDecodesAndTheReverse) {
  for (const testing::ManifestLayout& layout : testing::manifest_layouts()) {
    for (const RankCall& call : calls(layout.config, layout.parallel, {.mode = DisaggregationMode::kPrefill}))
      for (const ReachableRows& rows : call.rows) EXPECT_FALSE(rows.decode) << describe(call);
    const auto decode = calls(layout.config, layout.parallel, {.mode = DisaggregationMode::kDecode});
    for (const RankCall& call : decode)
      for (const ReachableRows& rows : call.rows) EXPECT_TRUE(rows.decode) << describe(call);
    EXPECT_FALSE(matrices(decode).contains(RankMatrix::kKvB)) << "decoding attends in absorbed form";
    EXPECT_FALSE(has_form(decode, GemmRows::kContiguous));
  }
}

// Beside decoding requests a step has at least one row of a prompt: with small chunks it is as large as all requests.
TEST(RankCalls, StepsWithPromptsHaveRoomForAllRequests) {
  const CallLimits limits{.max_running_requests = 256, .chunked_prefill_tokens = 16};
  EXPECT_THAT(texts(calls(testing::deepseek_v2_lite(), {}, limits)),
              Contains("layers 0-26 attention.o: bf16 dense 2048x2048, prefill 1-256, decode 1-256"));
  CallLimits prefill = limits;
  prefill.mode = DisaggregationMode::kPrefill;
  EXPECT_THAT(texts(calls(testing::deepseek_v2_lite(), {}, prefill)),
              Contains("layers 0-26 attention.o: bf16 dense 2048x2048, prefill 1-16"));
}

TEST(RankCalls, TheFormOfTheExchangeIsTheFormOfTheExperts) {
  ParallelConfig config = kExperts;
  config.deepep_mode = DeepepMode::kNormal;
  EXPECT_FALSE(has_form(calls(testing::deepseek_v3(), config), GemmRows::kMasked));
  config.deepep_mode = DeepepMode::kLowLatency;
  EXPECT_FALSE(has_form(calls(testing::deepseek_v3(), config), GemmRows::kContiguous));
}

// A prompt is divided over four context ranks; a step of few rows is not.
TEST(RankCalls, BothFormsOfStepsWithContextRanksAreThere) {
  const auto made = texts(calls(testing::deepseek_v3(), {.tp_size = 8, .attn_cp_size = 4}));
  EXPECT_THAT(made, Contains("layers 0-60 attention.o: fp8 dense 7168x8192, prefill 8-8 by 8, decode 8-8 by 8, "
                             "prefill 2-512 by 2, decode 2-64 by 2"));
  // Keys and values of all rows, wherever the queries are.
  EXPECT_THAT(made, Contains(AllOf(HasSubstr("attention.kv_b:"), HasSubstr("prefill 1-2048"))));
}

// A head has 192 rows of q_b, one and a half blocks of scales: odd heads begin inside a block, which FP8 kernels can't.
TEST(RankCalls, BlocksOfScalesThatAreCutGoAsBfloat16) {
  const ParallelConfig one_head{.tp_size = 128, .ep_size = 128};
  EXPECT_THAT(texts(calls(testing::deepseek_v3(), one_head, {}, 2)),
              Contains(HasSubstr("attention.q_b: fp8 dense 192x1536")));
  const auto odd = texts(calls(testing::deepseek_v3(), one_head, {}, 3));
  EXPECT_THAT(odd, Contains(HasSubstr("attention.q_b: bf16 dense 192x1536")));
  EXPECT_THAT(odd, ::testing::Not(Contains(HasSubstr("attention.q_b (input)"))));
  EXPECT_THAT(odd, Contains(HasSubstr("attention.o: fp8 dense 7168x128")));
}

// 10944 / 16 = 684 is no multiple of what rows are aligned to.
TEST(RankCalls, OddWidthsAreRoundedUp) {
  const auto made = texts(calls(testing::deepseek_v2_lite(), {.tp_size = 16}));
  EXPECT_THAT(made, Contains(HasSubstr("dense.gate_up: bf16 dense 1376x2048")));
  EXPECT_THAT(made, Contains(HasSubstr("dense.down: bf16 dense 2048x688")));
  EXPECT_TRUE(any_product(calls(testing::deepseek_v3(), {.tp_size = 64, .ep_size = 64}), [](const GemmShape& shape) {
    return shape.n == 2024;
  })) << "129280 / 64 = 2020 token ids";
}

TEST(RankCalls, WidthsThatNoKernelTakesAreRefused) {
  ModelConfig config = testing::deepseek_v2_lite();
  config.hidden_size = 2044;
  const auto refused = try_calls(config, {});
  ASSERT_TRUE(refused.has_error());
  EXPECT_EQ(refused.error().kind, ErrorKind::kUnsupported);
  EXPECT_THAT(
      refused.error().message,
      HasSubstr("layers 0-26 attention.query_latent: a product with k = 2044: k must be a positive multiple of 8"));
}

TEST(RankCalls, ModesHaveSglangsNames) {
  for (const DisaggregationMode mode :
       {DisaggregationMode::kNull, DisaggregationMode::kPrefill, DisaggregationMode::kDecode})
    EXPECT_EQ(*parse_disaggregation_mode(name_of(mode)), mode);
  EXPECT_THAT(parse_disaggregation_mode("both").error().message,
              HasSubstr("--disaggregation-mode both: choose null, prefill or decode"));
}

}  // namespace
}  // namespace plait
