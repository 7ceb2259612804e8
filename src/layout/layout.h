// Where an activation's rows are, and whether the ranks' values are complete.
//
// Plain values. Axes of width 1 do not exist (axes.h), so equal layouts mean that every rank holds the same rows.
#pragma once

#include <string>

#include "layout/axes.h"

namespace plait {

// In which order the rows of a data-parallel rank stand. No collective changes it; the head's selection of rows does.
enum class RowOrderKind : uint8_t {
  kBatch,    // as the scheduler made the step
  kContext,  // context ranks' rows one after another (row_order.h)
};

struct Layout {
  AxisSet sharded;  // ranks that differ along these axes hold different rows
  RowOrderKind order = RowOrderKind::kBatch;

  bool operator==(const Layout&) const = default;
};

struct Placement {
  Layout layout;
  AxisSet owed;  // ranks along these axes hold summands of the same rows; disjoint from layout.sharded

  bool operator==(const Placement&) const = default;
};

// "rows sharded over {attn_dp}, sum owed over {attn_tp}"
std::string describe(const TokenAxes& axes, const Layout& layout);
std::string describe(const TokenAxes& axes, const Placement& placement);

}  // namespace plait
