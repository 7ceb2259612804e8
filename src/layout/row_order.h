// The order of a data-parallel rank's rows under context parallelism, and which rows a rank holds in a layout.
//
// One permutation serves ids, positions, masks, capture and sampling; there is no second formula. Values.
#pragma once

#include <cstdint>
#include <vector>

#include "layout/layout.h"
#include "layout/step_rows.h"

namespace plait {

// Between the scheduler's order and the order in which context ranks' rows stand one after another. `rows` is the
// padded count, divisible by cp (interleave) or 2 * cp (zigzag); every context rank has rows / cp of them.
struct ContextOrder {
  CpStrategy strategy = CpStrategy::kInterleave;
  int64_t cp = 1;
  int64_t rows = 0;

  int64_t batch_row(int64_t place) const;  // the batch's row that stands at `place`
  int64_t place(int64_t batch_row) const;  // its inverse
};

// A run of rows of one data-parallel rank, in the step's row order.
struct RowRun {
  int64_t begin = 0;  // in a buffer of all padded rows
  int64_t count = 0;

  bool operator==(const RowRun&) const = default;
};

// Rows of a step on the ranks of a stage. `divided` holds every axis along which the plan ever shards rows
// (Plan::divided): along those a data-parallel rank's rows are cut into equal pieces, outer axes first.
class RowShards {
 public:
  RowShards(const TokenAxes& axes, AxisSet divided, StepRows rows);

  const StepRows& rows() const { return rows_; }
  // In the order in which `rank` stores them; neighbouring runs are merged.
  std::vector<RowRun> held(int rank, AxisSet sharded) const;
  int64_t count(int rank, AxisSet sharded) const;

 private:
  TokenAxes axes_;
  AxisSet divided_;
  StepRows rows_;
};

// True if the pieces that the ranks along `axes` hold, put one after another by rank, are not in the order in which a
// rank that holds all of them stores them: a gather or scatter over them must then also move rows locally.
bool needs_reorder(const TokenAxes& axes, AxisSet divided, AxisSet sharded_apart, AxisSet gathered);

}  // namespace plait
