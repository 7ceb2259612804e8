// An activation's rows together with what they mean; an owed sum is a different type from a complete value.
//
// Operations that need complete rows (norms, projections, residual additions) take Complete; operations that finish a
// sum (all-reduce, reduce-scatter, their fusion with a norm) take PartialSum. Forgetting a sum, or summing what nobody
// owes, is therefore a type error where stages are called, and an assertion where a plan is walked (plan_walk.h).
// `Rows` is the back end's handle: a matrix on one rank, or all ranks' matrices in a simulation.
#pragma once

#include <utility>
#include <variant>

#include "base/assert.h"
#include "layout/layout.h"

namespace plait {

template <typename Rows>
class Complete {
 public:
  Complete(Rows rows, Layout layout) : rows_(std::move(rows)), layout_(layout) {}

  const Rows& rows() const { return rows_; }
  Rows take() && { return std::move(rows_); }
  const Layout& layout() const { return layout_; }

 private:
  Rows rows_;
  Layout layout_;
};

// The ranks along owed() hold summands. There is no way to read them as values: summands() is for collectives, which
// return what they made of it.
template <typename Rows>
class PartialSum {
 public:
  PartialSum(Rows summands, Layout layout, AxisSet owed)
      : summands_(std::move(summands)), layout_(layout), owed_(owed) {
    PLAIT_ASSERT(!owed.empty() && !owed.meets(layout.sharded), "a sum is owed over axes that do not shard the rows");
  }

  const Rows& summands() const { return summands_; }
  Rows take() && { return std::move(summands_); }
  const Layout& layout() const { return layout_; }
  AxisSet owed() const { return owed_; }

 private:
  Rows summands_;
  Layout layout_;
  AxisSet owed_;
};

template <typename Rows>
using Activation = std::variant<Complete<Rows>, PartialSum<Rows>>;

// What a stage or a collective has made: complete exactly if nothing is owed.
template <typename Rows>
Activation<Rows> activation(Rows rows, const Placement& placement) {
  if (placement.owed.empty()) return Complete<Rows>(std::move(rows), placement.layout);
  return PartialSum<Rows>(std::move(rows), placement.layout, placement.owed);
}

template <typename Rows>
Placement placement_of(const Activation<Rows>& activation) {
  if (const auto* partial = std::get_if<PartialSum<Rows>>(&activation)) return {partial->layout(), partial->owed()};
  return {std::get<Complete<Rows>>(activation).layout(), {}};
}

}  // namespace plait
