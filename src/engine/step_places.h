// Which rows of a step one rank holds in each layout, and how they move when a layout changes.
//
// Made once per step and rank from agreed counts; lookups are cached because all layers ask alike. Rows are numbered in
// a buffer of all padded rows of the pipeline stage (RowShards). One thread.
#pragma once

#include <map>
#include <span>
#include <vector>

#include "layout/plan.h"
#include "layout/row_order.h"

namespace plait {

// `count` rows from `from` of one block to `to` of another.
struct RowCopy {
  int64_t from = 0;
  int64_t to = 0;
  int64_t count = 0;
};

// Copies that pick the rows `wanted` out of a block that stores the rows `held`; wanted must be among them. Both
// ascending.
std::vector<RowCopy> pick_rows(std::span<const RowRun> held, std::span<const RowRun> wanted);

// A gather or scatter: the pieces of the group's members one after another, in the order of the group.
struct PieceMove {
  std::vector<int64_t> rows;      // [members] of each piece
  bool in_order = false;          // the pieces one after another are the whole block already
  std::vector<RowCopy> to_block;  // from the pieces to the block; unused if in_order
};

class StepPlaces {
 public:
  // `rank`: its place in the pipeline stage. `plan` outlives this.
  StepPlaces(const Plan& plan, StepRows rows, int rank);

  const StepRows& rows() const { return shards_.rows(); }
  int64_t count(AxisSet sharded) const;
  const std::vector<RowRun>& held(AxisSet sharded) const;
  // Between rows sharded over `apart` in the members along `axes`, and all of their rows together.
  const PieceMove& pieces(AxisSet apart, AxisSet axes) const;
  // Of the rows held in that layout those that pad: ascending places in the block.
  const std::vector<int64_t>& padding(AxisSet sharded) const;
  // Of what is computed alike for rows held in that layout, the part that this rank writes down: of true rows of its
  // own data-parallel rank, those of which it is the first holder. Over all ranks that is each row once.
  struct RecordedRow {
    int64_t held = 0;  // its place in the block
    int64_t row = 0;   // in the data-parallel rank's step
  };
  const std::vector<RecordedRow>& recorded(AxisSet sharded) const;
  int rank() const { return rank_; }

 private:
  int64_t batch_row(int64_t row) const;  // in the order of its data-parallel rank's step
  bool is_padding(int64_t row) const;

  const Plan& plan_;
  const RowShards shards_;
  const int rank_;
  mutable std::map<uint32_t, std::vector<RowRun>> held_;
  mutable std::map<uint32_t, std::vector<int64_t>> padding_;
  mutable std::map<uint32_t, std::vector<RecordedRow>> recorded_;
  mutable std::map<std::pair<uint32_t, uint32_t>, PieceMove> pieces_;
};

}  // namespace plait
