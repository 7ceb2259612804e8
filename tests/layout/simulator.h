// All ranks of a stage in one thread: walks a plan over the toy model, moving rows only as the plan says.
//
// The reference of the engine's executor: what each of the walker's calls must do, without anything else. Pipeline
// stages follow each other on the same virtual ranks, so a send is a hand-over.
#pragma once

#include <optional>
#include <vector>

#include "layout/plan_walk.h"
#include "layout/row_order.h"
#include "tests/layout/toy_model.h"

namespace plait::test {

// One rank's rows.
struct Matrix {
  int width = 0;
  std::vector<Word> words;

  Matrix(int64_t rows, int columns) : width(columns), words(rows * columns) {}
  int64_t rows() const { return static_cast<int64_t>(words.size()) / width; }
  std::span<Word> row(int64_t index) { return {words.data() + index * width, static_cast<size_t>(width)}; }
  std::span<const Word> row(int64_t index) const { return {words.data() + index * width, static_cast<size_t>(width)}; }
};

// A fault to be noticed: the nth collective of the walk is left out (ranks go on with what they have, in the shape that
// is expected of them), or a sum is made twice.
struct Sabotage {
  enum class Kind { kSkip, kDouble } kind = Kind::kSkip;
  int collective = -1;
};

class Simulator {
 public:
  using Rows = std::vector<Matrix>;  // [ranks of a stage]

  Simulator(const Plan& plan, const std::vector<Batch>& batches, PaddingMode mode, Sabotage sabotage = {});

  // The rank's logits of every wanted row of the data-parallel ranks that it serves: checked against `expected`
  // [dp][logit row]. Returns what differs first, or nothing.
  std::optional<std::string> run(const std::vector<std::vector<std::array<Word, kVocabulary>>>& expected);
  int collectives() const { return calls_; }
  // How many of these were sums.
  const std::vector<CollectiveKind>& kinds() const { return kinds_; }

  // What PlanWalker asks for.
  Rows all_reduce(PartialSum<Rows> x, const Collective& collective);
  Rows reduce_scatter(PartialSum<Rows> x, const Collective& collective);
  Rows all_gather(Complete<Rows> x, const Collective& collective);
  Rows slice(const Rows& x, const Placement& placement, const Collective& collective);
  NormedRows<Rows> add_norm(Complete<Rows> delta, std::optional<Complete<Rows>> residual, const StageStep& step,
                            int64_t layer);
  NormedRows<Rows> all_reduce_add_norm(PartialSum<Rows> delta, Complete<Rows> residual,
                                       const FusedAllReduceAddNorm& fused, int64_t layer);
  Rows rowwise(Complete<Rows> x, const StageStep& step, int64_t layer);
  Rows anchored(Complete<Rows> x, const StageStep& step, int64_t layer);
  Rows embed(const StageStep& step);
  Rows add(Complete<Rows> x, const Complete<Rows>& y);
  Rows shared_expert(const Complete<Rows>& x, int64_t layer);
  Rows send_receive(Complete<Rows> x) { return std::move(x).take(); }
  Rows select_rows(Activation<Rows> delta, std::optional<Complete<Rows>> residual, const StageStep& step);

 private:
  // Where a row of the step comes from.
  struct Origin {
    int dp = 0;
    int64_t batch_row = 0;  // past the batch's end: padding
  };

  // The rows that a rank holds, as places in a buffer of all padded rows, in storage order.
  const std::vector<int64_t>& places(int rank, AxisSet sharded) const;
  Origin origin(int64_t place, bool context_order) const;
  int64_t place(int dp, int64_t batch_row, bool context_order) const;
  Share share(AxisSet axes, int rank) const { return {plan_.axes.place(axes, rank), plan_.axes.width(axes)}; }

  Rows sum(const Rows& x, const Layout& before, const Layout& after, const Collective& collective);
  // Begins a collective; true if it is the sabotaged one.
  bool sabotaged(const Collective& collective, Sabotage::Kind kind) const;
  void count(const Collective& collective);

  Matrix attention(const Rows& x, int rank, const Layout& layout, int64_t layer) const;
  Matrix experts_in_place(const Matrix& x, int rank, const StageDeclaration& stage, int64_t layer) const;
  Rows experts_by_dispatch(const Rows& x, int64_t layer) const;
  Rows head(const Rows& x, const StageStep& step) const;

  const Plan& plan_;
  const std::vector<Batch>& batches_;
  const Sabotage sabotage_;
  const int ranks_;
  RowShards token_shards_;
  RowShards logit_shards_;
  const RowShards* shards_;  // of the rows that are on their way: tokens, later selected rows
  struct Held {
    bool known = false;
    std::vector<int64_t> places;
  };
  mutable std::array<std::vector<Held>, 2> held_;  // [tokens, selected rows][rank, axis set]: places() remembers
  int calls_ = 0;
  std::vector<CollectiveKind> kinds_;
};

}  // namespace plait::test
