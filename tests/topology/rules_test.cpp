#include "topology/rules.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/topology/configurations.h"

namespace plait {
namespace {

using test::v3;
using ::testing::HasSubstr;

const RuleFinding* find(const ParallelVerdict& verdict, std::string_view rule) {
  for (const RuleFinding& finding : verdict.findings)
    if (rule == finding.rule) return &finding;
  return nullptr;
}

struct Case {
  const char* rule;
  ParallelConfig config;
  const char* says;                       // part of the explanation
  std::optional<ParallelConfig> becomes;  // absent: refused
};

void expect(const Case& expected, const ModelFacts* facts) {
  SCOPED_TRACE(fmt::format("{}: {}", expected.rule, to_flags(expected.config)));
  const ParallelVerdict verdict = judge(expected.config, facts);
  const RuleFinding* finding = find(verdict, expected.rule);
  ASSERT_NE(finding, nullptr);
  EXPECT_THAT(finding->explanation, HasSubstr(expected.says));
  EXPECT_EQ(finding->refused, !expected.becomes.has_value());
  EXPECT_EQ(verdict.accepted(), expected.becomes.has_value());
  EXPECT_EQ(verdict.status().has_error(), !expected.becomes.has_value());
  if (expected.becomes) {
    EXPECT_EQ(verdict.config, *expected.becomes);
  }
}

TEST(Rules, RefuseWhatCannotBeLaidOut) {
  const Case cases[] = {
      {"sizes-positive", {.tp_size = 0}, "at least 1", {}},
      {"hosts-divide-world", {.tp_size = 6, .nnodes = 4, .dist_init_addr = "a:1"}, "--nnodes 4", {}},
      {"node-rank-range", {.tp_size = 4, .nnodes = 2, .node_rank = 2}, "--node-rank 2", {}},
      {"hosts-need-address", {.tp_size = 4, .nnodes = 2}, "--dist-init-addr", {}},
      {"replicas-on-one-host",
       {.tp_size = 4, .dp_size = 2, .nnodes = 2, .dist_init_addr = "a:1"},
       "--enable-dp-attention",
       {}},
      {"attention-divides-tp", {.tp_size = 4, .dp_size = 3, .enable_dp_attention = true}, "--dp-size 3", {}},
      {"attention-divides-tp", {.tp_size = 4, .attn_cp_size = 3}, "--attn-cp-size 3", {}},
      {"attention-divides-tp",
       {.tp_size = 4, .dp_size = 2, .enable_dp_attention = true, .attn_cp_size = 4},
       "--dp-size 2 times --attn-cp-size 4",
       {}},
      {"moe-dp-divides-tp", {.tp_size = 4, .moe_dp_size = 3}, "--moe-dp-size 3", {}},
      {"experts-divide-tp", {.tp_size = 4, .ep_size = 4, .moe_dp_size = 2}, "--ep-size 4 times --moe-dp-size 2", {}},
      {"dense-divides-tp", {.tp_size = 4, .moe_dense_tp_size = 3}, "--moe-dense-tp-size 3", {}},
      {"blocks-nest",
       {.tp_size = 6, .dp_size = 3, .enable_dp_attention = true, .moe_dense_tp_size = 3},
       "neither number divides the other",
       {}},
  };
  for (const Case& refused : cases) expect(refused, nullptr);
}

TEST(Rules, ForceWhatFollowsFromAnotherFlag) {
  const Case cases[] = {
      {"dp-attention-alone",
       {.tp_size = 2, .enable_dp_attention = true},
       "--dp-size is 1",
       ParallelConfig{.tp_size = 2}},
      {"dp-lm-head-without-split",
       {.tp_size = 2, .enable_dp_lm_head = true},
       "whole stage",
       ParallelConfig{.tp_size = 2}},
      {"cp-size-means-cp",
       {.tp_size = 2, .attn_cp_size = 2, .cp_strategy = CpStrategy::kZigzag},
       "--attn-cp-size 2",
       ParallelConfig{.tp_size = 2, .attn_cp_size = 2, .enable_prefill_cp = true, .cp_strategy = CpStrategy::kZigzag}},
      {"cp-needs-width",
       {.tp_size = 2, .enable_prefill_cp = true},
       "--attn-cp-size is 1",
       ParallelConfig{.tp_size = 2}},
      {"cp-strategy-default",
       {.tp_size = 2, .attn_cp_size = 2, .enable_prefill_cp = true},
       "interleave",
       ParallelConfig{
           .tp_size = 2, .attn_cp_size = 2, .enable_prefill_cp = true, .cp_strategy = CpStrategy::kInterleave}},
      {"cp-options-without-cp",
       {.tp_size = 2, .cp_strategy = CpStrategy::kZigzag, .prefill_cp_kv_sharded = true},
       "ignored",
       ParallelConfig{.tp_size = 2}},
      {"deepep-mode-without-a2a",
       {.tp_size = 2, .deepep_mode = DeepepMode::kNormal},
       "--deepep-mode normal",
       ParallelConfig{.tp_size = 2}},
      {"a2a-spreads-experts",
       {.tp_size = 8, .ep_size = 2, .moe_a2a_backend = MoeA2a::kAllToAll},
       "--ep-size 2 becomes 8",
       ParallelConfig{.tp_size = 8, .ep_size = 8, .moe_a2a_backend = MoeA2a::kAllToAll}},
      {"a2a-spreads-experts",
       {.tp_size = 8, .moe_dp_size = 2, .moe_a2a_backend = MoeA2a::kAllToAll},
       "--ep-size 1 becomes 4",
       ParallelConfig{.tp_size = 8, .ep_size = 4, .moe_dp_size = 2, .moe_a2a_backend = MoeA2a::kAllToAll}},
  };
  for (const Case& forced : cases) expect(forced, nullptr);
}

TEST(Rules, RefuseWhatTheModelCannotBeCutInto) {
  const ModelFacts v3_facts = v3();
  ModelFacts dense = v3();
  dense.experts = 0;
  ModelFacts small = v3();
  small.layers = 6;
  small.heads = 6;

  expect({"layers-fill-stages", {.pp_size = 8}, "--pp-size 8", {}}, &small);
  expect({"no-experts", {.tp_size = 2, .ep_size = 2}, "has none", {}}, &dense);
  expect({"heads-divide", {.tp_size = 4}, "attention heads 6", {}}, &small);
  ModelFacts many = v3();
  many.experts = 250;
  expect({"experts-divide-ep", {.tp_size = 4, .ep_size = 4}, "routed experts 250", {}}, &many);
  expect({"expert-width-parts", {.tp_size = 32}, "16 blocks of 128 columns", {}}, &v3_facts);
  expect({"dense-width-parts",
          {.tp_size = 256, .dp_size = 128, .enable_dp_attention = true, .ep_size = 256},
          "144 blocks of 128 columns",
          {}},
         &v3_facts);
}

TEST(Rules, EveryModelRuleIsTold) {
  const ModelFacts facts = v3();
  const ParallelVerdict verdict = judge({.tp_size = 64, .pp_size = 64}, &facts);
  EXPECT_NE(find(verdict, "layers-fill-stages"), nullptr);
  EXPECT_NE(find(verdict, "expert-width-parts"), nullptr);
  EXPECT_THAT(verdict.status().error().message, HasSubstr("--pp-size 64"));
  EXPECT_THAT(verdict.status().error().message, HasSubstr("moe_intermediate_size"));
}

TEST(Rules, AcceptBlocksThatDoNotDivideEvenly) {
  ModelFacts v4 = v3();  // V4 Pro's experts on 16 ranks: 3072 / 16 = 192, but 24 blocks are enough for 16 parts
  v4.expert_intermediate = 3072;
  EXPECT_TRUE(judge({.tp_size = 16}, &v4).findings.empty());
}

// Each of these is refused or asserted away by SGLang although nothing in the arrangement of ranks forbids it.
TEST(Rules, AcceptWhatOnlyOtherCodeCannotDo) {
  const ModelFacts facts = v3();
  const ParallelConfig accepted[] = {
      {.tp_size = 8,
       .dp_size = 2,
       .enable_dp_attention = true,
       .attn_cp_size = 2,
       .enable_prefill_cp = true,
       .cp_strategy = CpStrategy::kInterleave},
      {.tp_size = 16,
       .ep_size = 16,
       .moe_dense_tp_size = 1,
       .attn_cp_size = 16,
       .enable_prefill_cp = true,
       .cp_strategy = CpStrategy::kZigzag},
      {.tp_size = 8, .moe_dense_tp_size = 4},
      {.tp_size = 8, .ep_size = 2, .moe_dp_size = 2},
      {.tp_size = 4, .pp_size = 2, .moe_dp_size = 2},
      {.tp_size = 8, .moe_dp_size = 2},
  };
  for (const ParallelConfig& config : accepted) {
    const ParallelVerdict verdict = judge(config, &facts);
    EXPECT_TRUE(verdict.findings.empty()) << to_flags(config) << ": " << verdict.findings.front().explanation;
  }
}

TEST(Rules, ShareTheSharedExpertWhereItsBlocksAllow) {
  const ModelFacts facts = v3();
  EXPECT_TRUE(shares_shared_expert({.tp_size = 16}, facts));
  EXPECT_FALSE(shares_shared_expert({.tp_size = 32, .ep_size = 32}, facts));
  EXPECT_FALSE(shares_shared_expert({.tp_size = 8, .ep_size = 8, .moe_a2a_backend = MoeA2a::kAllToAll}, facts));
}

TEST(Rules, EveryRuleHasAReason) {
  for (const RuleInfo& rule : parallel_rules()) EXPECT_GT(std::string_view(rule.reason).size(), 10u) << rule.name;
}

}  // namespace
}  // namespace plait
