#include "engine/kernel_manifest.h"

#include <map>

#include <fmt/ranges.h>

#include "engine/agreed_rows.h"
#include "engine/engine.h"
#include "kernels/cuda/gemm_chooser.h"
#include "kernels/cuda/gemm_table.h"
#include "model/model_facts.h"

namespace plait {
namespace {

using cuda::GemmKernel;
using cuda::GemmShape;
using cuda::QuantizeShape;

constexpr const char* kArchitecture = "sm_90a";  // that device/*.cu are written for

// Of [low, high] those row counts that can come; empty if there are none.
std::optional<std::pair<int64_t, int64_t>> reachable_between(const ReachableRows& rows, int64_t low, int64_t high) {
  const auto steps = [&](int64_t count) { return (count - rows.first) / rows.multiple; };
  low = std::max(low, rows.first);
  high = std::min(high, rows.last);
  if (low > high) return std::nullopt;
  const int64_t first = rows.first + steps(low + rows.multiple - 1) * rows.multiple;
  const int64_t last = rows.first + steps(high) * rows.multiple;
  if (first > last) return std::nullopt;
  return std::pair(first, last);
}

using RowRanges = std::vector<std::pair<int64_t, int64_t>>;

// "1-8, 24"; what touches or overlaps is one range.
std::string describe(RowRanges ranges) {
  std::ranges::sort(ranges);
  RowRanges merged;
  for (const auto& [first, last] : ranges) {
    if (merged.empty() || first > merged.back().second + 1)
      merged.emplace_back(first, last);
    else
      merged.back().second = std::max(merged.back().second, last);
  }
  std::vector<std::string> parts;
  for (const auto& [first, last] : merged)
    parts.push_back(first == last ? fmt::to_string(first) : fmt::format("{}-{}", first, last));
  return fmt::format("{}", fmt::join(parts, ", "));
}

// "prefill 1-2048 rows, decode 1-256 rows": those of `within` that can come; empty if none can.
std::string describe_rows(const RankCall& call, const RowRanges& within) {
  const auto* gemm = std::get_if<GemmShape>(&call.operation);
  const char* unit = gemm && gemm->rows == cuda::GemmRows::kMasked ? "rows a group" : "rows";
  std::vector<std::string> parts;
  for (const bool decode : {false, true}) {
    RowRanges ranges;
    for (const ReachableRows& rows : call.rows)
      for (const auto& [low, high] : within)
        if (const auto range = reachable_between(rows, low, high); range && rows.decode == decode)
          ranges.push_back(*range);
    if (!ranges.empty())
      parts.push_back(fmt::format("{} {} {}", decode ? "decode" : "prefill", describe(ranges), unit));
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

// Seconds of a 2.5 GHz core, measured by tests/engine/manifest_compile_test: most of it for unrolled products, as many
// as a tile has columns.
double compile_seconds(const GemmKernel& kernel) {
  if (const auto* narrow = std::get_if<cuda::NarrowGemmConfig>(&kernel.config)) return 0.125 + 0.0009 * narrow->tokens;
  const double of_a_column = kernel.shape.format == cuda::GemmFormat::kFp8 ? 0.00095 : 0.0018;
  return 0.11 + of_a_column * std::get<cuda::GemmConfig>(kernel.config).block_n;
}
double compile_seconds(const QuantizeShape& shape) {
  return shape.gated ? 0.185 : 0.125;
}

class ManifestBuilder {
 public:
  ManifestBuilder(const cuda::DeviceModel& device, std::string architecture)
      : device_(device), architecture_(std::move(architecture)) {}

  void add(const RankCall& call) {
    int64_t most = 0;
    for (const ReachableRows& rows : call.rows) most = std::max(most, rows.last);
    if (const auto* shape = std::get_if<QuantizeShape>(&call.operation))
      return add(call, *shape, describe_rows(call, {{1, most}}));
    // A kernel may be the answer for several ranges.
    std::vector<std::pair<GemmKernel, RowRanges>> chosen;
    for (const cuda::GemmChoice& choice : gemm_choices(device_, std::get<GemmShape>(call.operation), most)) {
      auto known = std::ranges::find(chosen, choice.kernel, [](const auto& each) { return each.first; });
      if (known == chosen.end()) known = chosen.insert(known, {choice.kernel, {}});
      known->second.emplace_back(choice.first_rows, choice.last_rows);
    }
    for (const auto& [kernel, ranges] : chosen) add(call, kernel, describe_rows(call, ranges));
  }

  jit::KernelManifest take() {
    jit::KernelManifest manifest;
    for (Kernel& kernel : kernels_) manifest.kernels.push_back(std::move(kernel.entry));
    std::ranges::sort(manifest.kernels, {}, [](const jit::ManifestEntry& entry) { return entry.source.name; });
    return manifest;
  }

 private:
  using Which = std::variant<GemmKernel, QuantizeShape>;
  struct Kernel {
    Which which;
    jit::ManifestEntry entry;
  };

  static jit::KernelSource source_of(const GemmKernel& kernel) { return cuda::source_of(kernel); }
  static jit::KernelSource source_of(const QuantizeShape& shape) { return quantize_source(shape); }

  template <typename T>
  void add(const RankCall& call, const T& kernel, const std::string& rows) {
    if (rows.empty()) return;
    auto known =
        std::find_if(kernels_.begin(), kernels_.end(), [&](const Kernel& each) { return each.which == Which(kernel); });
    if (known == kernels_.end()) {
      jit::ManifestEntry entry{.source = source_of(kernel), .compile_seconds = compile_seconds(kernel)};
      entry.source.architecture = architecture_;
      known = kernels_.insert(known, {kernel, std::move(entry)});
    }
    known->entry.calls.push_back(fmt::format("{}: {}", describe(call), rows));
  }

  const cuda::DeviceModel& device_;
  const std::string architecture_;
  std::vector<Kernel> kernels_;
};

}  // namespace

Result<jit::KernelManifest> kernel_manifest(std::span<const RankCall> calls, const cuda::DeviceModel& device,
                                            const std::string& architecture) {
  if (architecture != kArchitecture)
    return unsupported(fmt::format("there are no kernels for '{}'; there are for: {}", architecture, kArchitecture));
  ManifestBuilder builder(device, architecture);
  for (const RankCall& call : calls) builder.add(call);
  return builder.take();
}

Status choose_kernels_by(const EngineOptions& options, cuda::DeviceModel& device) {
  PLAIT_RETURN_IF_ERROR(cuda::use_gemm_table(options.kernel_table, device));
  device.deterministic = options.deterministic_kernels;
  return {};
}

ManifestQuestion manifest_question(const EngineOptions& options, ParallelConfig parallel, cuda::DeviceModel device) {
  return {.parallel = std::move(parallel),
          .limits = {.max_running_requests = options.max_running_requests,
                     .chunked_prefill_tokens = options.chunked_prefill_tokens,
                     .mode = options.disaggregation},
          .device = std::move(device)};
}

Result<std::vector<RankKernels>> kernels_of_ranks(const ModelConfig& config, const ManifestQuestion& question) {
  const Topology topology(question.parallel);
  PLAIT_ASSIGN_OR_RETURN(const std::vector<Plan> plans, make_step_plans(topology, model_facts(config)));
  std::vector<RankKernels> all;
  for (int rank = 0; rank < topology.world(); ++rank) {
    PLAIT_ASSIGN_OR_RETURN(std::vector<RankCall> calls, rank_calls(config, topology, plans, question.limits, rank));
    const int stage = topology.coordinates(rank).pp;
    auto same = std::find_if(all.begin(), all.end(), [&](const RankKernels& each) {
      return each.pipeline_stage == stage && each.calls == calls;
    });
    if (same == all.end()) same = all.insert(same, {.pipeline_stage = stage, .calls = std::move(calls)});
    same->ranks.push_back(rank);
  }
  for (RankKernels& each : all) {
    PLAIT_ASSIGN_OR_RETURN(each.manifest, kernel_manifest(each.calls, question.device, question.architecture));
  }
  return all;
}

jit::KernelManifest merge_manifests(std::span<const RankKernels> ranks) {
  std::map<std::pair<std::string, Digest>, jit::ManifestEntry> merged;
  for (const RankKernels& each : ranks)
    for (const jit::ManifestEntry& entry : each.manifest.kernels) {
      const auto [known, is_new] = merged.try_emplace({entry.source.name, kernel_key(entry.source, {})}, entry);
      if (is_new) continue;
      for (const std::string& call : entry.calls)
        if (std::ranges::find(known->second.calls, call) == known->second.calls.end())
          known->second.calls.push_back(call);
    }
  jit::KernelManifest manifest;
  for (auto& [key, entry] : merged) manifest.kernels.push_back(std::move(entry));
  return manifest;
}

}  // namespace plait
