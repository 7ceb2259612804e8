// How many rows each data-parallel rank has in a step, true and padded: the one place where rows are padded.
//
// The scheduler, dummy runs, graph capture and idle ranks all call pad_rows(); a count that reaches a collective
// has gone through it. Pure functions of agreed host values.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "topology/parallel_config.h"

namespace plait {

enum class PaddingMode : uint8_t {
  kMaxLen,  // every data-parallel rank is padded to the largest: equal collectives
  kSumLen,  // each keeps its own aligned count: variable collectives, no rows for nothing
};
const char* name_of(PaddingMode mode);

// What a padded count must be divisible by. All three are 1 where they do not apply to this step.
struct RowAlignment {
  int64_t shards = 1;              // ranks that share a data-parallel rank's rows (Plan::row_shards)
  int64_t context_blocks = 1;      // 2 * cp for zigzag, cp for interleave, if the step uses context parallelism
  int64_t tokens_per_request = 1;  // draft width of a verify step

  int64_t value() const;  // their least common multiple
};

struct StepRows {
  PaddingMode mode = PaddingMode::kMaxLen;
  std::vector<int64_t> true_rows;    // [dp]
  std::vector<int64_t> padded_rows;  // [dp]
  std::vector<int64_t> begin;        // [dp] first row of each in a buffer of all padded rows

  int64_t total() const;  // padded rows of all data-parallel ranks
  // Whose row that is, of a buffer of all padded rows. Empty ranks begin where the next one does and have none.
  size_t dp_of(int64_t row) const;
};

// Graph replay: kMaxLen. A prefill among several ranks: kSumLen. Else kMaxLen unless it would double the rows.
PaddingMode choose_padding_mode(std::span<const int64_t> true_rows, const RowAlignment& alignment, bool any_prefill,
                                bool graph_replay);

// Steps in which nobody has a row keep 0 rows; an idle rank among others has what the mode gives it.
StepRows pad_rows(std::vector<int64_t> true_rows, const RowAlignment& alignment, PaddingMode mode);

// Whether the rows of a step are divided over the context ranks: a function of agreed counts alone, prefill or decode,
// so that all ranks decide alike. True if some data-parallel rank has at least one row per context block.
bool uses_context_parallel(const ParallelConfig& config, std::span<const int64_t> true_rows);

}  // namespace plait
