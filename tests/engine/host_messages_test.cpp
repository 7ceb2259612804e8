#include "engine/host_messages.h"

#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace plait {
namespace {

HostOrder example_order() {
  HostOrder order;
  StepBuilder builder(7);
  const std::vector<int32_t> prompt{5, 6, 7, 8, 9}, pages{3, 1};
  builder.add(prompt, 0, pages, /*expanded_until=*/5, /*logit_count=*/2, /*state_slot=*/4);
  builder.add(std::vector<int32_t>{11}, 17, pages, 12, 1);
  order.of_dp_ranks.push_back(std::move(builder).build());
  order.of_dp_ranks.push_back(StepBuilder(8).build());  // idle
  SamplingParams params{.temperature = 0.5, .presence_penalty = 0.25, .repetition_penalty = 1.5, .seed = 99};
  params.logit_bias = {{3, -1.0F}};
  const std::vector<int32_t> outputs{1, 2, 3}, ends{0};
  const SamplingRow chooses{.params = &params,
                            .prompt_ids = prompt,
                            .output_ids = outputs,
                            .newest_id = -7,
                            .output_index = 3,
                            .end_ids = ends,
                            .want_logprob = true,
                            .top_logprobs = 2,
                            .logprob_ids = ends};
  const SamplingRow scores{.top_logprobs = 1, .target_id = 8};
  order.rows = {{OwnedSamplingRow::of(chooses), OwnedSamplingRow::of(scores)}, {}};
  return order;
}

TEST(HostMessages, OrdersSurviveTheWire) {
  const HostOrder sent = example_order();
  const HostOrder got = decode_order(encode(sent)).value();
  ASSERT_EQ(got.of_dp_ranks.size(), 2U);
  const Step& step = got.of_dp_ranks[0];
  EXPECT_EQ(step.mode, StepMode::kMixed);
  EXPECT_EQ(step.token_ids, sent.of_dp_ranks[0].token_ids);
  EXPECT_EQ(step.positions, sent.of_dp_ranks[0].positions);
  EXPECT_EQ(step.sequences[0].pages, (std::vector<int32_t>{3, 1}));
  EXPECT_EQ(step.sequences[1].first_position, 17);
  EXPECT_EQ(step.logit_rows, sent.of_dp_ranks[0].logit_rows);
  EXPECT_EQ(got.of_dp_ranks[1].mode, StepMode::kIdle);
  const SamplingRow row = got.rows[0][0].view();
  EXPECT_EQ(row.params->seed, 99U);
  EXPECT_THAT(row.output_ids, testing::ElementsAre(1, 2, 3));
  EXPECT_EQ(got.rows[0][1].view().params, nullptr);
  EXPECT_EQ(got.rows[0][1].view().target_id, 8);
  EXPECT_EQ(encode(got), encode(sent)) << "every field is on the wire";
}

TEST(HostMessages, TokensAndReportsSurviveTheWire) {
  const SampledRows sent{{{.id = 4, .logprob = -0.5F, .top = {{4, -0.5F}, {2, -1.5F}}, .requested = {{9, -7.0F}}}},
                         {{.not_finite = true}}};
  const SampledRows got = decode_sampled(encode(sent)).value();
  EXPECT_EQ(got[0][0].top[1].id, 2);
  EXPECT_TRUE(got[1][0].not_finite);
  EXPECT_EQ(encode(got), encode(sent));

  const StartReport report{.kv_pages = 12, .failure = corrupt("a tensor is missing")};
  const StartReport read = decode_start_report(encode(report)).value();
  EXPECT_EQ(read.kv_pages, 12);
  EXPECT_EQ(read.failure->kind, ErrorKind::kCorrupt);
  EXPECT_EQ(read.failure->message, "a tensor is missing");
}

// With every step of a long sequence its history would be most of the bytes.
TEST(HostMessages, HistoriesTravelOnlyForPenalties) {
  const std::vector<int32_t> prompt(1000, 1), outputs(500, 2);
  const auto bytes = [&](const SamplingParams& params) {
    HostOrder order;
    order.rows = {
        {OwnedSamplingRow::of({.params = &params, .prompt_ids = prompt, .output_ids = outputs, .output_index = 500})}};
    return encode(order).size();
  };
  const size_t none = bytes({.temperature = 0.7});
  EXPECT_LT(none, 300U);
  EXPECT_EQ(bytes({.frequency_penalty = 0.1}), none + 4 * outputs.size());
  EXPECT_EQ(bytes({.repetition_penalty = 1.1}), none + 4 * (outputs.size() + prompt.size()));
}

TEST(HostMessages, BrokenBytesAreRefused) {
  const std::string good = encode(example_order());
  for (size_t length = 0; length < good.size(); ++length) {
    const auto order = decode_order(std::string_view(good).substr(0, length));
    ASSERT_TRUE(order.has_error()) << length << " of " << good.size() << " bytes";
    EXPECT_EQ(order.error().kind, ErrorKind::kCorrupt);
  }
  EXPECT_TRUE(decode_order(good + "x").has_error());
  // Changed bytes may still be an order, but nothing may be read or allocated beyond them.
  std::mt19937 random(1);
  int refused = 0;
  constexpr int kTries = 2000;
  for (int i = 0; i < kTries; ++i) {
    std::string bad = good;
    for (int changes = 0; changes < 3; ++changes) bad[random() % bad.size()] = static_cast<char>(random());
    refused += decode_order(bad).has_error();
  }
  EXPECT_GT(refused, 0);
  std::printf("%zu truncated and %d changed orders, %d of these refused\n", good.size(), kTries, refused);
}

}  // namespace
}  // namespace plait
