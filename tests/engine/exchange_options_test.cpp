#include "engine/exchange_options.h"

#include <gtest/gtest.h>

#include "layout/step_rows.h"

namespace plait {
namespace {

ModelFacts small_model() {
  ModelFacts facts;
  facts.hidden = 64;
  facts.experts = 16;
  facts.experts_per_token = 4;
  return facts;
}

ParallelConfig ranks(int tp, int dp, DeepepMode mode) {
  ParallelConfig config{.tp_size = tp, .dp_size = dp, .enable_dp_attention = dp > 1};
  config.ep_size = tp;
  config.moe_a2a_backend = MoeA2a::kAllToAll;
  config.deepep_mode = mode;
  return config;
}

TEST(ExchangeOptions, SharesOutLimitsOfAllRanks) {
  const StepLimits limits = step_limits(ranks(8, 4, DeepepMode::kAuto), 6, 1000);
  EXPECT_EQ(limits.decode.requests_per_rank, 2) << "6 requests on 4 ranks";
  EXPECT_EQ(limits.prefill_tokens, 250);
  EXPECT_EQ(step_limits(ranks(8, 4, DeepepMode::kAuto), 1, 1).decode.requests_per_rank, 1);
  EXPECT_EQ(step_limits(ranks(8, 4, DeepepMode::kAuto), 6, 1000, /*dp=*/2).decode.requests_per_rank, 1);
  EXPECT_EQ(step_limits(ranks(8, 4, DeepepMode::kAuto), 6, 1001, /*dp=*/1).prefill_tokens, 250);
}

TEST(ExchangeOptions, TheFormIsAFunctionOfAgreedCounts) {
  using comm::ExchangeForm;
  const std::vector<int64_t> rows = {8, 0, 16};
  EXPECT_EQ(exchange_form(DeepepMode::kAuto, 16, rows, /*any_prefill=*/false), ExchangeForm::kLowLatency);
  EXPECT_EQ(exchange_form(DeepepMode::kAuto, 16, rows, /*any_prefill=*/true), ExchangeForm::kNormal);
  EXPECT_EQ(exchange_form(DeepepMode::kAuto, 15, rows, /*any_prefill=*/false), ExchangeForm::kNormal);
  EXPECT_EQ(exchange_form(DeepepMode::kNormal, 16, rows, /*any_prefill=*/false), ExchangeForm::kNormal);
  EXPECT_EQ(exchange_form(DeepepMode::kLowLatency, 16, rows, /*any_prefill=*/true), ExchangeForm::kLowLatency);
}

// Every step that can come fits, with its padding; also with drafts, and prefills where there is no other form.
TEST(ExchangeOptions, EveryStepFitsTheLowLatencyForm) {
  int cases = 0;
  for (const int tp : {2, 4, 8})
    for (int dp = 1; dp <= tp; dp *= 2)
      for (const int64_t requests : {1, 5, 48, 257})
        for (const int64_t drafts : {1, 2, 3})
          for (const DeepepMode mode : {DeepepMode::kAuto, DeepepMode::kLowLatency}) {
            const ParallelConfig config = ranks(tp, dp, mode);
            StepLimits limits = step_limits(config, requests, 300);
            limits.decode.tokens_per_request = drafts;
            const auto options = exchange_options(small_model(), config, limits, kernels::Activation::kBFloat16);
            ASSERT_TRUE(options.has_value()) << options.error().message;
            int64_t rows = limits.decode.requests_per_rank * drafts;
            if (mode == DeepepMode::kLowLatency) rows = std::max(rows, limits.prefill_tokens);
            for (const int64_t context_blocks : {1, tp / dp, 2 * tp / dp}) {
              const RowAlignment alignment{tp / dp, context_blocks, drafts};
              const StepRows padded = pad_rows({rows}, alignment, PaddingMode::kMaxLen);
              EXPECT_LE(padded.padded_rows[0], options->capacity_tokens) << "tp " << tp << ", dp " << dp;
              ++cases;
            }
          }
  std::cout << cases << " largest steps fit the buffer of the low-latency exchange\n";
}

TEST(ExchangeOptions, TheNormalFormHasNoStaticBuffer) {
  const ParallelConfig config = ranks(4, 4, DeepepMode::kNormal);
  const auto options =
      exchange_options(small_model(), config, step_limits(config, 48, 300), kernels::Activation::kFloat32);
  EXPECT_EQ(options->capacity_tokens, 0);
  EXPECT_EQ(options->payload, DType::kF32);
}

}  // namespace
}  // namespace plait
