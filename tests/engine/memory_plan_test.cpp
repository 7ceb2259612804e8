#include "engine/memory_plan.h"

#include <fstream>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "engine/available_memory.h"
#include "engine/kv_pool.h"
#include "engine/replicas.h"

namespace plait {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

KvComponent latent() {
  return {.name = "latent", .layers = 4, .row_width = 64, .dtype = DType::kBF16};  // 512 bytes per token
}

MemoryNeeds needs() {
  MemoryNeeds needs;
  needs.available_bytes = 1000 * kMiB;
  needs.weight_bytes = 400 * kMiB;
  needs.scratch_bytes = 100 * kMiB;
  needs.kv.components = {latent()};
  needs.page_tokens = 16;
  needs.mem_fraction_static = 0.8;
  needs.max_running_requests = 1000;
  needs.context_tokens = 100000;
  return needs;
}

TEST(MemoryPlan, FillsTheStaticShareWithPages) {
  const MemoryPlan plan = plan_memory(needs()).value();
  EXPECT_EQ(plan.kv_bytes, 400 * kMiB);
  EXPECT_EQ(plan.kv_tokens, static_cast<int64_t>(400 * kMiB / 512));
  EXPECT_EQ(plan.kv_pages * 16, plan.kv_tokens);
}

TEST(MemoryPlan, CountsRoutedExpertsWithTheTokensTheyBelongTo) {
  MemoryNeeds keeps = needs();
  keeps.routed_expert_bytes_per_token = 128;  // beside 512 of KV
  const MemoryPlan plan = plan_memory(keeps).value();
  EXPECT_EQ(plan.kv_tokens, static_cast<int64_t>(400 * kMiB / (512 + 128)));
  EXPECT_EQ(plan.kv_bytes, static_cast<size_t>(plan.kv_tokens) * 512);
  EXPECT_EQ(plan.routed_expert_bytes, static_cast<size_t>(plan.kv_tokens) * 128);
  EXPECT_NE(plan.to_string().find("experts"), std::string::npos) << plan.to_string();
  EXPECT_EQ(plan_memory(needs()).value().to_string().find("experts"), std::string::npos);
}

TEST(MemoryPlan, LeavesRoomForScratch) {
  MemoryNeeds large = needs();
  large.scratch_bytes = 450 * kMiB;
  EXPECT_EQ(plan_memory(large).value().kv_bytes, 150 * kMiB);
}

TEST(MemoryPlan, NeverPlansMoreThanRequestsCanUse) {
  MemoryNeeds small = needs();
  small.max_running_requests = 3;
  small.context_tokens = 100;  // 7 pages each
  EXPECT_EQ(plan_memory(small).value().kv_pages, 21);
}

TEST(MemoryPlan, FollowsMaxTotalTokensWhereItFits) {
  MemoryNeeds asked = needs();
  asked.max_total_tokens = 1000;
  EXPECT_EQ(plan_memory(asked).value().kv_tokens, 1008);
  asked.max_total_tokens = int64_t{1} << 40;
  EXPECT_EQ(plan_memory(asked).value().kv_bytes, 400 * kMiB);
}

TEST(MemoryPlan, CountsWhatSequencesKeep) {
  MemoryNeeds stateful = needs();
  stateful.max_running_requests = 100;
  stateful.kv.components.push_back({.name = "window",
                                    .growth = KvGrowth::kWindow,
                                    .window_tokens = 128,
                                    .layers = 2,
                                    .row_width = 64,
                                    .dtype = DType::kF32});  // 64 KiB per sequence
  const MemoryPlan plan = plan_memory(stateful).value();
  EXPECT_EQ(plan.kv_tokens, static_cast<int64_t>((400 * kMiB - 100 * 65536) / 8192 * 16));
  EXPECT_LE(plan.kv_bytes, 400 * kMiB);
}

TEST(MemoryPlan, RefusesWhatDoesNotFit) {
  MemoryNeeds large = needs();
  large.weight_bytes = 900 * kMiB;
  const auto plan = plan_memory(large);
  ASSERT_TRUE(plan.has_error());
  EXPECT_EQ(plan.error().kind, ErrorKind::kExhausted);
  for (const char* expected : {"weights", "900.0 MiB", "--mem-fraction-static", "--chunked-prefill-size"})
    EXPECT_NE(plan.error().message.find(expected), std::string::npos) << plan.error().message;
}

TEST(MemoryPlan, RefusesPageSizesThatSplitRows) {
  MemoryNeeds odd = needs();
  odd.kv.components.push_back({.name = "compressed", .tokens_per_row = 128, .layers = 1, .row_width = 64});
  EXPECT_EQ(plan_memory(odd).error().kind, ErrorKind::kInvalid);
  odd.page_tokens = 256;
  EXPECT_TRUE(plan_memory(odd).has_value());
  odd.kv.reuse_granularity_tokens = 512;
  EXPECT_EQ(plan_memory(odd).error().kind, ErrorKind::kInvalid);
  odd.page_tokens = 0;
  EXPECT_EQ(plan_memory(odd).error().kind, ErrorKind::kInvalid);
}

TEST(KvPool, HasABlockPerComponent) {
  KvSpec spec;
  spec.components = {latent(),
                     {.name = "compressed", .tokens_per_row = 4, .layers = 3, .row_width = 8, .dtype = DType::kU8},
                     {.name = "window",
                      .growth = KvGrowth::kWindow,
                      .window_tokens = 128,
                      .layers = 2,
                      .row_width = 64,
                      .dtype = DType::kF32},
                     {.name = "state",
                      .growth = KvGrowth::kPerSequence,
                      .rows_per_sequence = 5,
                      .layers = 2,
                      .row_width = 16,
                      .dtype = DType::kF32}};
  const KvPool pool(spec, /*pages=*/10, /*page_tokens=*/16, /*sequences=*/7);
  const KvMemory& memory = pool.memory();
  ASSERT_EQ(memory.components.size(), 4u);
  EXPECT_EQ(memory.components[0].layer_stride_bytes, 10 * 16 * 128);
  EXPECT_EQ(memory.components[1].layer_stride_bytes, 10 * 4 * 8);
  EXPECT_EQ(memory.components[2].layer_stride_bytes, 7 * 128 * 256);
  EXPECT_EQ(memory.components[3].layer_stride_bytes, 7 * 5 * 64);
  EXPECT_EQ(pool.size_bytes(), 4 * 20480u + 3 * 320u + 2 * 229376u + 2 * 2240u);
  EXPECT_EQ(pool.size_bytes(),
            static_cast<size_t>(spec.bytes_per_token() * 160 + static_cast<double>(spec.bytes_per_sequence() * 7)));
  memory.components[3].data[pool.memory().components[3].layer_stride_bytes * 2 - 1] = std::byte{1};  // the last byte
}

// -- available_memory_bytes over a made-up /proc and /sys
// ----------------------------------------------------------------

class AvailableMemory : public ::testing::Test {
 protected:
  AvailableMemory() : root_(std::filesystem::temp_directory_path() / fmt::format("plait-memory-{}", getpid())) {
    write("proc/meminfo", "MemTotal:       4000 kB\nMemFree: 10 kB\nMemAvailable:    2000 kB\nBuffers: 1 kB\n");
  }
  ~AvailableMemory() override { std::filesystem::remove_all(root_); }

  void write(const std::string& path, const std::string& text) const {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  size_t available() const { return available_memory_bytes(root_); }

 private:
  const std::filesystem::path root_;
};

TEST_F(AvailableMemory, IsMemAvailableWithoutCgroups) {
  EXPECT_EQ(available(), 2000u * 1024);
}

TEST_F(AvailableMemory, ObeysTheTightestCgroupAbove) {
  write("proc/self/cgroup", "0::/service/plait\n");
  write("sys/fs/cgroup/service/memory.max", "1000000\n");
  write("sys/fs/cgroup/service/memory.current", "600000\n");
  write("sys/fs/cgroup/service/memory.stat", "anon 1\ninactive_file 100000\n");
  write("sys/fs/cgroup/service/plait/memory.max", "max\n");
  write("sys/fs/cgroup/service/plait/memory.current", "500000\n");
  EXPECT_EQ(available(), 500000u);
}

TEST_F(AvailableMemory, ReadsTheRootOfACgroupNamespace) {
  write("proc/self/cgroup", "0::/\n");
  write("sys/fs/cgroup/memory.max", "700000\n");
  write("sys/fs/cgroup/memory.current", "800000\n");
  EXPECT_EQ(available(), 0u);
}

TEST_F(AvailableMemory, ReadsVersionOne) {
  write("proc/self/cgroup", "12:cpu,cpuacct:/x\n9:memory:/docker/abc\n0::/\n");
  write("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "1500000\n");
  write("sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes", "500000\n");
  write("sys/fs/cgroup/memory/docker/abc/memory.stat", "cache 5\ntotal_inactive_file 250000\n");
  EXPECT_EQ(available(), 1250000u);
}

TEST(AvailableMemoryHere, IsSomething) {
  EXPECT_GT(available_memory_bytes(), 16 * kMiB);
}

TEST(Replicas, ShareMemoryAndCoresEvenly) {
  EngineOptions asked;
  asked.model_path = "m";
  asked.parallel.tp_size = 2;
  asked.parallel.dp_size = 3;
  const EngineOptions own = options_of_replica(asked, 3000 * kMiB, 8);
  EXPECT_EQ(own.parallel.dp_size, 1);
  EXPECT_EQ(own.parallel.tp_size, 2);
  EXPECT_EQ(own.memory_bytes, 1000 * kMiB);
  EXPECT_EQ(own.threads, 2);
  EXPECT_EQ(own.model_path, "m");
  EXPECT_EQ(options_of_replica(asked, 3000 * kMiB, 2).threads, 1) << "0 would mean all cores";
  asked.threads = 6;
  EXPECT_EQ(options_of_replica(asked, 3000 * kMiB, 8).threads, 2) << "threads are counted over all replicas";
}

TEST(Replicas, OneEngineGetsWhatWasAskedFor) {
  EngineOptions asked;
  asked.parallel.tp_size = 2;
  asked.parallel.dp_size = 2;
  asked.parallel.enable_dp_attention = true;
  const EngineOptions own = options_of_replica(asked, 3000 * kMiB, 8);
  EXPECT_EQ(own.parallel, asked.parallel);
  EXPECT_EQ(own.memory_bytes, 0U);
  EXPECT_EQ(own.threads, 0);
}

}  // namespace
}  // namespace plait
