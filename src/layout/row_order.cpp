#include "layout/row_order.h"

#include "base/assert.h"

namespace plait {

int64_t ContextOrder::batch_row(int64_t place) const {
  const int64_t share = rows / cp;
  const int64_t rank = place / share, local = place % share;
  if (strategy == CpStrategy::kInterleave) return local * cp + rank;
  const int64_t block = share / 2;
  return local < block ? rank * block + local : (2 * cp - 1 - rank) * block + (local - block);
}

int64_t ContextOrder::place(int64_t batch_row) const {
  const int64_t share = rows / cp;
  if (strategy == CpStrategy::kInterleave) return batch_row % cp * share + batch_row / cp;
  const int64_t block = share / 2;
  const int64_t index = batch_row / block, within = batch_row % block;
  return index < cp ? index * share + within : (2 * cp - 1 - index) * share + block + within;
}

RowShards::RowShards(const TokenAxes& axes, AxisSet divided, StepRows rows)
    : axes_(axes), divided_(divided), rows_(std::move(rows)) {
  const int pieces = axes_.width(divided_ - axes_.attn_dp());
  PLAIT_ASSERT(static_cast<int>(rows_.padded_rows.size()) == axes_.width(axes_.attn_dp()), "a count per DP rank");
  for (const int64_t count : rows_.padded_rows) PLAIT_ASSERT(count % pieces == 0, "rows went through pad_rows()");
}

std::vector<RowRun> RowShards::held(int rank, AxisSet sharded) const {
  PLAIT_ASSERT((divided_ | axes_.attn_dp()).contains(sharded), "rows are sharded along divided axes only");
  const AxisSet pieces_along = divided_ - axes_.attn_dp();
  const AxisSet own_dp = sharded & axes_.attn_dp(), own_piece = sharded - axes_.attn_dp();
  const int pieces = axes_.width(pieces_along);
  std::vector<RowRun> runs;
  // A rank stands for its digits: going through all ranks along the axes that are not sharded, in ascending order, goes
  // through all pieces that this one holds.
  for (const int dp_peer : axes_.group(axes_.attn_dp() - own_dp, rank)) {
    const int dp = axes_.place(axes_.attn_dp(), dp_peer);
    const int64_t share = rows_.padded_rows[dp] / pieces;
    if (share == 0) continue;
    for (const int piece_peer : axes_.group(pieces_along - own_piece, rank)) {
      const int64_t begin = rows_.begin[dp] + axes_.place(pieces_along, piece_peer) * share;
      if (!runs.empty() && runs.back().begin + runs.back().count == begin)
        runs.back().count += share;
      else
        runs.push_back({begin, share});
    }
  }
  return runs;
}

int64_t RowShards::count(int rank, AxisSet sharded) const {
  int64_t count = 0;
  for (const RowRun& run : held(rank, sharded)) count += run.count;
  return count;
}

bool needs_reorder(const TokenAxes& axes, AxisSet divided, AxisSet sharded_apart, AxisSet gathered) {
  // In order iff no axis that moves is inner to one that the pieces already contain whole.
  AxisSet whole = (divided | axes.attn_dp()) - sharded_apart;
  for (int i = axes.count() - 1; i >= 0; --i) {
    const AxisSet axis = AxisSet::axis(i);
    if (!gathered.contains(axis)) continue;
    for (int outer = 0; outer < i; ++outer)
      if (whole.contains(AxisSet::axis(outer))) return true;
  }
  return false;
}

}  // namespace plait
