#include "engine/memory_plan.h"

#include "base/units.h"

namespace plait {
namespace {

Status check_page_size(const KvSpec& kv, int64_t page_tokens) {
  if (page_tokens < 1) return invalid(fmt::format("--page-size {} is not positive", page_tokens));
  if (page_tokens % kv.reuse_granularity_tokens != 0)
    return invalid(
        fmt::format("--page-size {} is not a multiple of {}, the tokens after which this model's cache can "
                    "be shared",
                    page_tokens, kv.reuse_granularity_tokens));
  for (const KvComponent& component : kv.components)
    if (component.growth == KvGrowth::kPerToken && page_tokens % component.tokens_per_row != 0)
      return invalid(fmt::format("--page-size {} is not a multiple of {}, the tokens of one row of the {} cache",
                                 page_tokens, component.tokens_per_row, component.name));
  return {};
}

// Exact: rows of a page are whole, so this is an integer.
size_t page_bytes(const KvSpec& kv, int64_t page_tokens) {
  return static_cast<size_t>(std::llround(kv.bytes_per_token() * static_cast<double>(page_tokens)));
}

size_t minus(size_t a, size_t b) {
  return a > b ? a - b : 0;
}

int64_t pages_of(int64_t tokens, int64_t page_tokens) {
  return (tokens + page_tokens - 1) / page_tokens;
}

}  // namespace

Result<MemoryPlan> plan_memory(const MemoryNeeds& needs) {
  PLAIT_RETURN_IF_ERROR(check_page_size(needs.kv, needs.page_tokens));
  const auto share = static_cast<size_t>(static_cast<double>(needs.available_bytes) * needs.mem_fraction_static);
  const size_t budget = std::min(minus(share, needs.weight_bytes),
                                 minus(needs.available_bytes, needs.weight_bytes + needs.scratch_bytes));
  const size_t sequence_bytes = static_cast<size_t>(needs.kv.bytes_per_sequence() * needs.max_running_requests);
  const size_t bytes_per_page = page_bytes(needs.kv, needs.page_tokens);
  const auto expert_bytes_per_page = static_cast<size_t>(needs.routed_expert_bytes_per_token * needs.page_tokens);
  const auto fitting =
      static_cast<int64_t>(minus(budget, sequence_bytes) / std::max<size_t>(bytes_per_page + expert_bytes_per_page, 1));
  const int64_t wanted = needs.max_total_tokens > 0
                             ? pages_of(needs.max_total_tokens, needs.page_tokens)
                             : needs.max_running_requests * pages_of(needs.context_tokens, needs.page_tokens);

  MemoryPlan plan;
  plan.available_bytes = needs.available_bytes;
  plan.mem_fraction_static = needs.mem_fraction_static;
  plan.weight_bytes = needs.weight_bytes;
  plan.scratch_bytes = needs.scratch_bytes;
  plan.page_tokens = needs.page_tokens;
  plan.kv_pages = std::max<int64_t>(std::min(fitting, wanted), 1);
  plan.kv_tokens = plan.kv_pages * needs.page_tokens;
  plan.kv_bytes = sequence_bytes + static_cast<size_t>(plan.kv_pages) * bytes_per_page;
  plan.routed_expert_bytes = static_cast<size_t>(plan.kv_pages) * expert_bytes_per_page;
  if (fitting < 1)
    return exhausted(
        fmt::format("weights, scratch and one page of KV do not fit into memory.\n{}\nFree memory, raise "
                    "--mem-fraction-static, or lower --chunked-prefill-size or --max-running-requests.",
                    plan.to_string()));
  return plan;
}

std::string MemoryPlan::to_string() const {
  const auto line = [](const char* what, size_t bytes, const std::string& note = "") {
    return fmt::format("\n  {:10} {:>10}{}{}", what, format_bytes(bytes), note.empty() ? "" : "  ", note);
  };
  const size_t planned = weight_bytes + kv_bytes + routed_expert_bytes + scratch_bytes;
  std::string table = "Memory plan";
  table +=
      line("available", available_bytes, fmt::format("weights and KV may use {:.0f} %", 100 * mem_fraction_static));
  table += line("weights", weight_bytes);
  table += line("KV cache", kv_bytes, fmt::format("{} tokens in {} pages of {}", kv_tokens, kv_pages, page_tokens));
  if (routed_expert_bytes > 0)
    table += line("experts", routed_expert_bytes, "chosen for each token of the KV cache, on the host");
  table += line("scratch", scratch_bytes, "largest step");
  table +=
      planned <= available_bytes ? line("left", available_bytes - planned) : line("missing", planned - available_bytes);
  return table;
}

}  // namespace plait
