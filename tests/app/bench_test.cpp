#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/thread_pool.h"
#include "bench/machine_probe.h"
#include "bench/model_bench.h"
#include "bench/model_runner.h"
#include "bench/probe_kernels.h"
#include "tensor/buffer.h"

namespace plait {
namespace {

const std::filesystem::path kSource = PLAIT_SOURCE_DIR;

TEST(ProbeKernels, ReadEveryWordOnce) {
  Buffer buffer(64 << 10);
  auto* words = buffer.as<uint64_t>();
  const size_t count = buffer.size_bytes() / sizeof(uint64_t);
  uint64_t expected = 0;
  for (size_t i = 0; i < count; ++i) {
    words[i] = i * 0x9e3779b97f4a7c15u;
    expected ^= words[i];
  }
  EXPECT_EQ(read_all(words, buffer.size_bytes()), expected);
  words[count - 1] ^= 1;
  EXPECT_EQ(read_all(words, buffer.size_bytes()), expected ^ 1);
}

TEST(ProbeKernels, CountOperationsInProportion) {
  const double thousand = f32_multiply_adds(1000);
  EXPECT_GT(thousand, 1000 * 2 * 10);  // ten chains of at least two lanes
  EXPECT_EQ(f32_multiply_adds(3000), 3 * thousand);
  if (has_bf16_dot_product()) {
    EXPECT_EQ(bf16_dot_products(3000), 3 * bf16_dot_products(1000));
  }
}

TEST(MachineProbe, FiguresArePlausible) {
  ThreadPool pool(2);
  const MachineProfile profile = MachineProbe(pool).profile(0.01);
  EXPECT_EQ(profile.threads, 2);
  EXPECT_FALSE(profile.cpu.empty());
  EXPECT_GT(profile.read_bandwidth, 1e8);
  EXPECT_LT(profile.read_bandwidth, 1e13);
  EXPECT_GT(profile.f32_flops, 1e8);
  EXPECT_GE(profile.bf16_flops, profile.f32_flops);
  EXPECT_EQ(profile.bf16_flops > profile.f32_flops, profile.bf16_instruction.starts_with("VDPBF16PS"))
      << profile.bf16_instruction;
}

TEST(V2LiteConfig, HasThePublishedWidths) {
  for (const auto weights : {BenchOptions::WeightKind::kBF16, BenchOptions::WeightKind::kFP8}) {
    const auto config = v2_lite_config(5, weights);
    ASSERT_TRUE(config.has_value()) << config.error().message;
    EXPECT_EQ(config->num_hidden_layers, 5);
    EXPECT_EQ(config->kv_lora_rank, 512);
    EXPECT_FALSE(config->q_lora_rank.has_value());
    EXPECT_EQ(config->gate.experts, 64);
    EXPECT_EQ(config->fp8_block.has_value(), weights == BenchOptions::WeightKind::kFP8);
  }
  EXPECT_GE(layers_that_fit(BenchOptions::WeightKind::kBF16), 3);
}

class RunnerTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::filesystem::path folder = kSource / "tests/data/goldens" / GetParam();
    auto config = read_model_config(folder);
    ASSERT_TRUE(config.has_value()) << config.error().message;
    config_ = *config;
    auto runner = ModelRunner::create(config_, {}, folder, pool_);
    ASSERT_TRUE(runner.has_value()) << runner.error().message;
    runner_ = std::move(*runner);
  }
  int64_t sparse_layers() const {
    int64_t count = 0;
    for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) count += config_.layer_has_experts(layer);
    return count;
  }

  ThreadPool pool_{2};
  ModelConfig config_;
  std::unique_ptr<ModelRunner> runner_;
};

TEST_P(RunnerTest, CountsDistinctExperts) {
  const int64_t per_token = config_.gate.experts_per_token * sparse_layers();
  runner_->reserve_kv(4, 20);
  EXPECT_EQ(runner_->decode(1, 20).distinct_experts, per_token);
  const TimedStep four = runner_->decode(4, 20);
  EXPECT_GE(four.distinct_experts, per_token);
  EXPECT_LE(four.distinct_experts, std::min(4 * per_token, config_.gate.experts * sparse_layers()));
}

TEST_P(RunnerTest, BytesGrowWithContextAndBatchAsTheyMust) {
  runner_->reserve_kv(4, 100);
  const double per_token = runner_->model().kv_spec().bytes_per_token();
  const TimedStep near = runner_->decode(4, 20), far = runner_->decode(4, 100);
  EXPECT_NEAR(far.cost.total().kv_bytes - near.cost.total().kv_bytes, 4 * 80 * per_token, 1);
  EXPECT_EQ(runner_->kv_bytes(4, 15), static_cast<size_t>(4 * 16 * per_token));  // one page each
  EXPECT_GT(near.cost.total().weight_bytes, 0);
  EXPECT_LE(near.cost.total().weight_bytes, static_cast<double>(runner_->model().weight_bytes()));
  const TimedStep prefill = runner_->prefill(40);
  EXPECT_GT(prefill.cost.total().flops, 5 * near.cost.total().flops);  // ten times the rows
  EXPECT_GT(prefill.seconds, 0);
}

TEST_P(RunnerTest, RowsAreReportedOrSkippedWithAReason) {
  BenchOptions options;
  options.prefill_tokens = {8, config_.max_position_embeddings + 1};
  options.decode_batch = {1, 2};
  options.decode_context_tokens = {16, config_.max_position_embeddings};
  options.seconds_per_row = 0.001;
  std::vector<BenchRow> rows;
  int probes = 0;
  // Reads at 1, 2, 1, 2, ... and computes at 3, 5, 3, 5, ...
  const auto ceilings = [&] { return ++probes % 2 == 1 ? Ceilings{1, 3} : Ceilings{2, 5}; };
  bench_model(*runner_, options, ceilings, [&](const BenchRow& row) { rows.push_back(row); });
  ASSERT_EQ(rows.size(), 6u);
  int skipped = 0;
  for (const BenchRow& row : rows) {
    if (!row.skipped.empty()) {
      ++skipped;
      continue;
    }
    EXPECT_GE(row.steps, 3);
    EXPECT_GT(row.tokens_per_second(), 0);
    EXPECT_GT(row.bandwidth(), 0);
    EXPECT_GT(row.flop_rate(), 0);
    EXPECT_EQ(row.ceilings.read_bandwidth, 1.5);
    EXPECT_EQ(row.ceilings.flops, 4);
    EXPECT_EQ(row.share_of_memory(), row.bandwidth() / 1.5);
    EXPECT_GE(row.share_of_limit(), std::max(row.share_of_memory(), row.share_of_peak()) * (1 - 1e-9));
  }
  EXPECT_EQ(skipped, 3);
}

INSTANTIATE_TEST_SUITE_P(Goldens, RunnerTest, testing::Values("v2-lite", "v3"));

}  // namespace
}  // namespace plait
