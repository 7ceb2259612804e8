#include "bench/kernel_cases.h"

#include <algorithm>
#include <map>
#include <set>

#include <boost/json/object.hpp>

#include "base/round.h"
#include "kernels/cuda/gemm_chooser.h"

namespace plait {
namespace {

using cuda::GemmFormat;
using cuda::GemmRows;
using cuda::GemmShape;
using cuda::QuantizeShape;

constexpr int64_t kUsualRows[] = {1, 16, 64, 128, 512, 2048, 4096, 8192};

bool can_come(const RankCall& call, int64_t count) {
  return std::ranges::any_of(call.rows, [&](const ReachableRows& rows) {
    return count >= rows.first && count <= rows.last && (count - rows.first) % rows.multiple == 0;
  });
}

int64_t most_rows(const RankCall& call) {
  return std::ranges::max(call.rows, {}, &ReachableRows::last).last;
}

// A row of 128 is as good as one of 100 where counts come in multiples of 128.
int64_t multiple_of(const RankCall& call) {
  return std::ranges::max(call.rows, {}, &ReachableRows::multiple).multiple;
}

std::vector<int64_t> rows_to_measure(const RankCall& call, std::span<const int64_t> wanted) {
  std::set<int64_t> rows;
  for (const int64_t count : wanted) {
    const int64_t aligned = round_up(count, multiple_of(call));
    if (can_come(call, count))
      rows.insert(count);
    else if (can_come(call, aligned))
      rows.insert(aligned);
  }
  if (rows.empty()) rows.insert(most_rows(call));
  return {rows.begin(), rows.end()};
}

void add_label(KernelCase& each, const RankCall& call) {
  const std::string name =
      fmt::format("{}{}", name_of(call.matrix), std::holds_alternative<QuantizeShape>(call.operation) ? " input" : "");
  if (each.label.find(name) == std::string::npos) each.label += (each.label.empty() ? "" : ", ") + name;
}

// What DeepGEMM's tests have: groups and rows of each, n and k.
struct Sizes {
  int64_t n, k;
};
constexpr Sizes kDenseSizes[] = {{2112, 7168},  {576, 7168},  {24576, 1536}, {32768, 512},
                                 {7168, 16384}, {4096, 7168}, {7168, 2048}};
constexpr int64_t kDenseRows[] = {1, 128, 4096};
constexpr Sizes kExpertSizes[] = {{6144, 7168}, {7168, 3072}, {4096, 4096}, {4096, 2048}};
struct Groups {
  int groups;
  int64_t rows;  // of each
};
constexpr Groups kContiguousGroups[] = {{4, 8192}, {8, 4096}};
constexpr Groups kMaskedGroups[] = {{32, 192}, {6, 1024}, {32, 20}, {6, 20}};
constexpr int64_t kMaskedRoom = 4096;

}  // namespace

std::vector<KernelCase> model_cases(std::span<const RankKernels> ranks, std::span<const int64_t> rows) {
  const std::span<const int64_t> wanted = rows.empty() ? std::span<const int64_t>(kUsualRows) : rows;
  std::vector<KernelCase> cases;
  for (const RankKernels& rank : ranks)
    for (const RankCall& call : rank.calls) {
      auto known = std::ranges::find(cases, call.operation, &KernelCase::operation);
      if (known == cases.end()) known = cases.insert(known, {.operation = call.operation});
      add_label(*known, call);
      for (const int64_t count : rows_to_measure(call, wanted))
        if (std::ranges::find(known->rows, count) == known->rows.end()) known->rows.push_back(count);
    }
  for (KernelCase& each : cases) std::ranges::sort(each.rows);
  // Products first.
  std::ranges::stable_partition(cases, [](const KernelCase& each) { return each.operation.index() == 0; });
  return cases;
}

std::vector<KernelCase> deepgemm_cases(GemmFormat format, std::span<const int64_t> rows) {
  std::vector<KernelCase> cases;
  const auto add = [&](const char* label, const GemmShape& shape, int64_t count, int64_t each, int64_t room) {
    if (!rows.empty() && std::ranges::find(rows, each) == rows.end()) return;
    auto known = std::ranges::find_if(
        cases, [&](const KernelCase& c) { return std::get<GemmShape>(c.operation) == shape && c.room == room; });
    if (known == cases.end()) known = cases.insert(known, {.label = label, .operation = shape, .room = room});
    known->rows.push_back(count);
  };
  const std::span<const int64_t> dense = rows.empty() ? std::span<const int64_t>(kDenseRows) : rows;
  for (const auto& [n, k] : kDenseSizes)
    for (const int64_t m : dense) add("dense", {.format = format, .n = n, .k = k}, m, m, 0);
  for (const auto& [groups, each] : kContiguousGroups)
    for (const auto& [n, k] : kExpertSizes)
      add("contiguous", {.rows = GemmRows::kContiguous, .format = format, .n = n, .k = k, .groups = groups},
          groups * each, each, 0);
  for (const auto& [groups, each] : kMaskedGroups)
    for (const auto& [n, k] : kExpertSizes)
      add("masked", {.rows = GemmRows::kMasked, .format = format, .n = n, .k = k, .groups = groups}, each, each,
          kMaskedRoom);
  return cases;
}

std::vector<cuda::TuneTask> tune_tasks(std::span<const RankKernels> ranks, int64_t most) {
  std::vector<cuda::TuneTask> tasks;
  for (const RankKernels& rank : ranks)
    for (const RankCall& call : rank.calls) {
      const auto* shape = std::get_if<GemmShape>(&call.operation);
      if (shape == nullptr) continue;
      auto known = std::ranges::find(tasks, *shape, &cuda::TuneTask::shape);
      if (known == tasks.end()) known = tasks.insert(known, {.shape = *shape, .rows = {}});
      for (const ReachableRows& rows : call.rows)
        for (const int64_t largest : cuda::rows_classes(rows.first, std::min(rows.last, most)))
          if (std::ranges::find(known->rows, largest) == known->rows.end()) known->rows.push_back(largest);
    }
  for (cuda::TuneTask& task : tasks) std::ranges::sort(task.rows);
  std::erase_if(tasks, [](const cuda::TuneTask& task) { return task.rows.empty(); });
  return tasks;
}

Result<ModelConfig> deepseek_v3_config() {
  const boost::json::object config = {
      {"model_type", "deepseek_v3"},
      {"torch_dtype", "bfloat16"},
      {"vocab_size", 129280},
      {"hidden_size", 7168},
      {"intermediate_size", 18432},
      {"moe_intermediate_size", 2048},
      {"num_hidden_layers", 61},
      {"first_k_dense_replace", 3},
      {"moe_layer_freq", 1},
      {"num_attention_heads", 128},
      {"q_lora_rank", 1536},
      {"kv_lora_rank", 512},
      {"qk_nope_head_dim", 128},
      {"qk_rope_head_dim", 64},
      {"v_head_dim", 128},
      {"n_shared_experts", 1},
      {"n_routed_experts", 256},
      {"num_experts_per_tok", 8},
      {"n_group", 8},
      {"topk_group", 4},
      {"topk_method", "noaux_tc"},
      {"scoring_func", "sigmoid"},
      {"norm_topk_prob", true},
      {"routed_scaling_factor", 2.5},
      {"max_position_embeddings", 163840},
      {"quantization_config", {{"fmt", "e4m3"}, {"quant_method", "fp8"}, {"weight_block_size", {128, 128}}}}};
  return parse_model_config(config, nullptr);
}

ParallelConfig deepseek_v3_layout() {
  return {.tp_size = 8, .dp_size = 8, .enable_dp_attention = true, .ep_size = 8, .moe_a2a_backend = MoeA2a::kAllToAll};
}

}  // namespace plait
