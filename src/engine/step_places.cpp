#include "engine/step_places.h"

#include "base/assert.h"

namespace plait {

std::vector<RowCopy> pick_rows(std::span<const RowRun> held, std::span<const RowRun> wanted) {
  std::vector<RowCopy> copies;
  size_t at = 0;
  int64_t at_place = 0;  // of held[at] in its block
  int64_t to = 0;
  for (RowRun run : wanted) {
    while (run.count > 0) {
      while (at < held.size() && held[at].begin + held[at].count <= run.begin) at_place += held[at++].count;
      PLAIT_ASSERT(at < held.size() && held[at].begin <= run.begin, "pick_rows: a row that is not held");
      const int64_t offset = run.begin - held[at].begin;
      const int64_t count = std::min(run.count, held[at].count - offset);
      copies.push_back({at_place + offset, to, count});
      to += count;
      run.begin += count;
      run.count -= count;
    }
  }
  return copies;
}

StepPlaces::StepPlaces(const Plan& plan, StepRows rows, int rank)
    : plan_(plan), shards_(plan.axes, plan.divided, std::move(rows)), rank_(rank) {}

const std::vector<RowRun>& StepPlaces::held(AxisSet sharded) const {
  const auto [entry, is_new] = held_.try_emplace(sharded.bits());
  if (is_new) entry->second = shards_.held(rank_, sharded);
  return entry->second;
}

int64_t StepPlaces::count(AxisSet sharded) const {
  int64_t rows = 0;
  for (const RowRun& run : held(sharded)) rows += run.count;
  return rows;
}

const PieceMove& StepPlaces::pieces(AxisSet apart, AxisSet axes) const {
  const auto [entry, is_new] = pieces_.try_emplace({apart.bits(), axes.bits()});
  PieceMove& move = entry->second;
  if (!is_new) return move;
  const std::vector<RowRun>& block = held(apart - axes);
  int64_t begin = 0;
  for (const int member : plan_.axes.group(axes, rank_)) {
    const std::vector<RowRun> piece = shards_.held(member, apart);
    for (const RowCopy& copy : pick_rows(block, piece)) {
      // From the piece, which lies at `begin` among the pieces, to its place in the block.
      move.to_block.push_back({begin + copy.to, copy.from, copy.count});
    }
    move.rows.push_back(shards_.count(member, apart));
    begin += move.rows.back();
  }
  move.in_order =
      std::all_of(move.to_block.begin(), move.to_block.end(), [](const RowCopy& copy) { return copy.from == copy.to; });
  return move;
}

int64_t StepPlaces::batch_row(int64_t row) const {
  const StepRows& rows = shards_.rows();
  const size_t dp = rows.dp_of(row);
  const int64_t place = row - rows.begin[dp];
  if (!plan_.form.context_parallel) return place;
  const ContextOrder order{plan_.config.strategy(), plan_.config.attn_cp_size, rows.padded_rows[dp]};
  return order.batch_row(place);
}

bool StepPlaces::is_padding(int64_t row) const {
  return batch_row(row) >= shards_.rows().true_rows[shards_.rows().dp_of(row)];
}

const std::vector<StepPlaces::RecordedRow>& StepPlaces::recorded(AxisSet sharded) const {
  const auto [entry, is_new] = recorded_.try_emplace(sharded.bits());
  const TokenAxes& axes = plan_.axes;
  if (!is_new || axes.place(axes.all() - axes.attn_dp() - sharded, rank_) != 0) return entry->second;
  const auto own_dp = static_cast<size_t>(axes.place(axes.attn_dp(), rank_));
  int64_t held = 0;
  for (const RowRun& run : this->held(sharded))
    for (int64_t row = run.begin; row < run.begin + run.count; ++row, ++held)
      if (shards_.rows().dp_of(row) == own_dp && !is_padding(row)) entry->second.push_back({held, batch_row(row)});
  return entry->second;
}

const std::vector<int64_t>& StepPlaces::padding(AxisSet sharded) const {
  const auto [entry, is_new] = padding_.try_emplace(sharded.bits());
  if (!is_new) return entry->second;
  int64_t place = 0;
  for (const RowRun& run : held(sharded))
    for (int64_t i = 0; i < run.count; ++i, ++place)
      if (is_padding(run.begin + i)) entry->second.push_back(place);
  return entry->second;
}

}  // namespace plait
