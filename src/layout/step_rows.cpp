#include "layout/step_rows.h"

#include <numeric>

#include "base/round.h"

namespace plait {

const char* name_of(PaddingMode mode) {
  return mode == PaddingMode::kMaxLen ? "MAX_LEN" : "SUM_LEN";
}

int64_t RowAlignment::value() const {
  return std::lcm(std::lcm(shards, context_blocks), tokens_per_request);
}

int64_t StepRows::total() const {
  return std::accumulate(padded_rows.begin(), padded_rows.end(), int64_t{0});
}

size_t StepRows::dp_of(int64_t row) const {
  return static_cast<size_t>(std::upper_bound(begin.begin(), begin.end(), row) - begin.begin()) - 1;
}

PaddingMode choose_padding_mode(std::span<const int64_t> true_rows, const RowAlignment& alignment, bool any_prefill,
                                bool graph_replay) {
  if (graph_replay) return PaddingMode::kMaxLen;
  const auto ranks = static_cast<int64_t>(true_rows.size());
  if (any_prefill && ranks > 1) return PaddingMode::kSumLen;
  int64_t sum = 0, most = 0;
  for (const int64_t rows : true_rows) {
    const int64_t aligned = round_up(rows, alignment.value());
    sum += aligned;
    most = std::max(most, aligned);
  }
  return 2 * sum >= most * ranks ? PaddingMode::kMaxLen : PaddingMode::kSumLen;
}

StepRows pad_rows(std::vector<int64_t> true_rows, const RowAlignment& alignment, PaddingMode mode) {
  StepRows rows{mode, std::move(true_rows), {}, {}};
  for (const int64_t count : rows.true_rows) rows.padded_rows.push_back(round_up(count, alignment.value()));
  if (mode == PaddingMode::kMaxLen && !rows.padded_rows.empty())
    rows.padded_rows.assign(rows.padded_rows.size(),
                            *std::max_element(rows.padded_rows.begin(), rows.padded_rows.end()));
  rows.begin.resize(rows.padded_rows.size());
  std::exclusive_scan(rows.padded_rows.begin(), rows.padded_rows.end(), rows.begin.begin(), int64_t{0});
  return rows;
}

bool uses_context_parallel(const ParallelConfig& config, std::span<const int64_t> true_rows) {
  if (config.attn_cp_size == 1) return false;
  const int64_t blocks = config.attn_cp_size * (config.strategy() == CpStrategy::kZigzag ? 2 : 1);
  return std::any_of(true_rows.begin(), true_rows.end(), [&](int64_t rows) { return rows >= blocks; });
}

}  // namespace plait
