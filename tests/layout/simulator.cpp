#include "tests/layout/simulator.h"

namespace plait::test {
namespace {

std::vector<int64_t> rows_of(const std::vector<Batch>& batches, bool logit_rows) {
  std::vector<int64_t> counts;
  for (const Batch& batch : batches)
    counts.push_back(static_cast<int64_t>(logit_rows ? batch.logit_rows.size() : batch.tokens.size()));
  return counts;
}

bool is_context_order(const Layout& layout) {
  return layout.order == RowOrderKind::kContext;
}

void add_row(std::span<const Word> from, std::span<Word> to) {
  for (size_t i = 0; i < to.size(); ++i) to[i] += from[i];
}

}  // namespace

Simulator::Simulator(const Plan& plan, const std::vector<Batch>& batches, PaddingMode mode, Sabotage sabotage)
    : plan_(plan),
      batches_(batches),
      sabotage_(sabotage),
      ranks_(plan.axes.ranks()),
      token_shards_(plan.axes, plan.divided, pad_rows(rows_of(batches, false), plan.alignment(), mode)),
      logit_shards_(plan.axes, plan.divided,
                    pad_rows(rows_of(batches, true), {.shards = plan.alignment().shards}, mode)),
      shards_(&token_shards_) {}

std::optional<std::string> Simulator::run(const std::vector<std::vector<std::array<Word, kVocabulary>>>& expected) {
  const Stream<Rows> stream = PlanWalker(*this).walk(plan_);
  const auto& logits = std::get<Complete<Rows>>(*stream.delta);
  for (int rank = 0; rank < ranks_; ++rank) {
    const std::vector<int64_t>& held = places(rank, logits.layout().sharded);
    size_t compared = 0;
    for (size_t i = 0; i < held.size(); ++i) {
      const Origin at = origin(held[i], false);
      if (at.batch_row >= static_cast<int64_t>(expected[at.dp].size())) continue;
      ++compared;
      const auto row = logits.rows()[rank].row(static_cast<int64_t>(i));
      if (!std::equal(row.begin(), row.end(), expected[at.dp][at.batch_row].begin()))
        return fmt::format("rank {}: logits of row {} of data-parallel rank {}", rank, at.batch_row, at.dp);
    }
    const int own_dp = plan_.axes.place(plan_.axes.attn_dp(), rank);
    if (compared < expected[own_dp].size()) return fmt::format("rank {}: lacks logits of its own requests", rank);
  }
  return std::nullopt;
}

const std::vector<int64_t>& Simulator::places(int rank, AxisSet sharded) const {
  std::vector<Held>& known = held_[shards_ == &logit_shards_ ? 1 : 0];
  const size_t sets = size_t{1} << plan_.axes.count();
  known.resize(ranks_ * sets);
  Held& held = known[rank * sets + sharded.bits()];
  if (held.known) return held.places;
  held.known = true;
  for (const RowRun& run : shards_->held(rank, sharded))
    for (int64_t i = 0; i < run.count; ++i) held.places.push_back(run.begin + i);
  return held.places;
}

Simulator::Origin Simulator::origin(int64_t place, bool context_order) const {
  const StepRows& rows = shards_->rows();
  int dp = static_cast<int>(rows.begin.size()) - 1;
  while (place < rows.begin[dp]) --dp;
  const int64_t local = place - rows.begin[dp];
  if (!context_order) return {dp, local};
  return {dp, ContextOrder{plan_.config.strategy(), plan_.config.attn_cp_size, rows.padded_rows[dp]}.batch_row(local)};
}

int64_t Simulator::place(int dp, int64_t batch_row, bool context_order) const {
  const StepRows& rows = shards_->rows();
  if (!context_order) return rows.begin[dp] + batch_row;
  return rows.begin[dp] +
         ContextOrder{plan_.config.strategy(), plan_.config.attn_cp_size, rows.padded_rows[dp]}.place(batch_row);
}

void Simulator::count(const Collective& collective) {
  ++calls_;
  kinds_.push_back(collective.kind);
}

// --- collectives

bool Simulator::sabotaged(const Collective&, Sabotage::Kind kind) const {
  return sabotage_.kind == kind && sabotage_.collective == calls_ - 1;
}

// What each rank keeps of the sum over its group.
Simulator::Rows Simulator::sum(const Rows& x, const Layout& before, const Layout& after, const Collective& collective) {
  count(collective);
  const bool skip = sabotaged(collective, Sabotage::Kind::kSkip);
  const Word times = sabotaged(collective, Sabotage::Kind::kDouble) ? plan_.axes.width(collective.axes) : 1;
  Rows result;
  for (int rank = 0; rank < ranks_; ++rank) {
    const std::vector<int64_t>& had = places(rank, before.sharded);
    const std::vector<int64_t>& kept = places(rank, after.sharded);
    Matrix& own = result.emplace_back(static_cast<int64_t>(kept.size()), x[rank].width);
    const std::vector<int> group = skip ? std::vector<int>{rank} : plan_.axes.group(collective.axes, rank);
    for (size_t i = 0, from = 0; i < kept.size(); ++i) {
      while (had[from] != kept[i]) ++from;
      for (const int peer : group) add_row(x[peer].row(static_cast<int64_t>(from)), own.row(static_cast<int64_t>(i)));
      for (Word& word : own.row(static_cast<int64_t>(i))) word *= times;
    }
  }
  return result;
}

Simulator::Rows Simulator::all_reduce(PartialSum<Rows> x, const Collective& collective) {
  return sum(x.summands(), x.layout(), x.layout(), collective);
}

Simulator::Rows Simulator::reduce_scatter(PartialSum<Rows> x, const Collective& collective) {
  return sum(x.summands(), x.layout(), collective.after.layout, collective);
}

Simulator::Rows Simulator::all_gather(Complete<Rows> x, const Collective& collective) {
  count(collective);
  const bool skip = sabotaged(collective, Sabotage::Kind::kSkip);
  Rows result;
  for (int rank = 0; rank < ranks_; ++rank) {
    const std::vector<int64_t>& wanted = places(rank, collective.after.layout.sharded);
    Matrix& own = result.emplace_back(static_cast<int64_t>(wanted.size()), x.rows()[rank].width);
    for (const int peer : plan_.axes.group(collective.axes, rank)) {
      const std::vector<int64_t>& sent = places(peer, x.layout().sharded);
      for (size_t i = 0; i < sent.size(); ++i) {
        const auto at = std::lower_bound(wanted.begin(), wanted.end(), sent[i]) - wanted.begin();
        const int64_t own_rows = x.rows()[rank].rows();
        if (skip && own_rows == 0) continue;
        const auto from =
            skip ? x.rows()[rank].row(static_cast<int64_t>(i) % own_rows) : x.rows()[peer].row(static_cast<int64_t>(i));
        std::copy(from.begin(), from.end(), own.row(at).begin());
      }
    }
  }
  return result;
}

Simulator::Rows Simulator::slice(const Rows& x, const Placement& placement, const Collective& collective) {
  count(collective);
  const bool skip = sabotaged(collective, Sabotage::Kind::kSkip);
  Rows result;
  for (int rank = 0; rank < ranks_; ++rank) {
    const std::vector<int64_t>& had = places(rank, placement.layout.sharded);
    const std::vector<int64_t>& kept = places(rank, collective.after.layout.sharded);
    Matrix& own = result.emplace_back(static_cast<int64_t>(kept.size()), x[rank].width);
    for (size_t i = 0, from = 0; i < kept.size(); ++i) {
      while (had[from] != kept[i]) ++from;
      const auto row = x[rank].row(static_cast<int64_t>(skip ? i : from));
      std::copy(row.begin(), row.end(), own.row(static_cast<int64_t>(i)).begin());
    }
  }
  return result;
}

// --- stages that work row by row

NormedRows<Simulator::Rows> Simulator::add_norm(Complete<Rows> delta, std::optional<Complete<Rows>> residual,
                                                const StageStep&, int64_t) {
  const Layout layout = delta.layout();
  Rows sum = residual ? add(std::move(delta), *residual) : std::move(delta).take();
  Rows normed = sum;
  for (int rank = 0; rank < ranks_; ++rank)
    for (int64_t row = 0; row < sum[rank].rows(); ++row) norm(sum[rank].row(row), normed[rank].row(row));
  return {Complete<Rows>(std::move(normed), layout), Complete<Rows>(std::move(sum), layout)};
}

NormedRows<Simulator::Rows> Simulator::all_reduce_add_norm(PartialSum<Rows> delta, Complete<Rows> residual,
                                                           const FusedAllReduceAddNorm& fused, int64_t layer) {
  const Layout layout = delta.layout();
  Complete<Rows> sum(all_reduce(std::move(delta), fused.all_reduce), layout);
  return add_norm(std::move(sum), std::move(residual), fused.add_norm, layer);
}

Simulator::Rows Simulator::add(Complete<Rows> x, const Complete<Rows>& y) {
  PLAIT_ASSERT(x.layout() == y.layout(), "rows are added where both are");
  Rows sum = std::move(x).take();
  for (int rank = 0; rank < ranks_; ++rank) add_row(y.rows()[rank].words, sum[rank].words);
  return sum;
}

Simulator::Rows Simulator::rowwise(Complete<Rows> x, const StageStep&, int64_t layer) {
  Rows result;
  for (const Matrix& own : x.rows()) {
    Matrix& projected = result.emplace_back(own.rows(), kLatent);
    for (int64_t row = 0; row < own.rows(); ++row) project_latent(layer, own.row(row), projected.row(row));
  }
  return result;
}

Simulator::Rows Simulator::shared_expert(const Complete<Rows>& x, int64_t layer) {
  Rows result;
  for (const Matrix& own : x.rows()) {
    Matrix& output = result.emplace_back(own.rows(), kHidden);
    for (int64_t row = 0; row < own.rows(); ++row) test::shared_expert(layer, own.row(row), {}, output.row(row));
  }
  return result;
}

// --- stages that are divided

Simulator::Rows Simulator::embed(const StageStep& step) {
  Rows result;
  for (int rank = 0; rank < ranks_; ++rank) {
    const std::vector<int64_t>& held = places(rank, step.out.layout.sharded);
    Matrix& own = result.emplace_back(static_cast<int64_t>(held.size()), kHidden);
    for (size_t i = 0; i < held.size(); ++i) {
      const Origin at = origin(held[i], is_context_order(step.out.layout));
      const std::vector<int>& tokens = batches_[at.dp].tokens;
      const int token = at.batch_row < static_cast<int64_t>(tokens.size()) ? tokens[at.batch_row] : 0;
      test::embed(token, share(step.out.owed, rank), own.row(static_cast<int64_t>(i)));
    }
  }
  return result;
}

Simulator::Rows Simulator::anchored(Complete<Rows> x, const StageStep& step, int64_t layer) {
  if (step.stage.kind == StageKind::kHead) return head(x.rows(), step);
  const bool dispatches = plan_.config.moe_a2a_backend == MoeA2a::kAllToAll;
  if (step.stage.kind == StageKind::kExperts && dispatches) return experts_by_dispatch(x.rows(), layer);
  Rows result;
  for (int rank = 0; rank < ranks_; ++rank) {
    if (step.stage.kind == StageKind::kAttention) {
      result.push_back(attention(x.rows(), rank, x.layout(), layer));
    } else if (step.stage.kind == StageKind::kExperts) {
      result.push_back(experts_in_place(x.rows()[rank], rank, step.stage, layer));
    } else {
      const Matrix& own = x.rows()[rank];
      Matrix& output = result.emplace_back(own.rows(), kHidden);
      for (int64_t row = 0; row < own.rows(); ++row)
        dense_mlp(layer, own.row(row), share(plan_.axes.dense(), rank), output.row(row));
    }
  }
  return result;
}

// Every rank makes the keys of its own rows and gets those of the other context ranks.
Matrix Simulator::attention(const Rows& x, int rank, const Layout& layout, int64_t layer) const {
  const int dp = plan_.axes.place(plan_.axes.attn_dp(), rank);
  const bool context_order = is_context_order(layout);
  const AxisSet context = plan_.form.context_parallel ? plan_.axes.attn_cp() : AxisSet{};
  std::vector<Word> keys(shards_->rows().padded_rows[dp]);
  for (const int peer : plan_.axes.group(context, rank)) {
    const std::vector<int64_t>& held = places(peer, layout.sharded);
    for (size_t i = 0; i < held.size(); ++i)
      keys[origin(held[i], context_order).batch_row] = key_of(layer, x[peer].row(static_cast<int64_t>(i)));
  }
  const Share heads = share(plan_.axes.attn_tp(), rank);
  const auto sums = sum_keys(keys, batches_[dp], heads);
  const std::vector<int64_t>& held = places(rank, layout.sharded);
  Matrix output(static_cast<int64_t>(held.size()), kHidden);
  for (int64_t row = 0; row < output.rows(); ++row)
    attend(layer, x[rank].row(row), sums[origin(held[row], context_order).batch_row], heads, output.row(row));
  return output;
}

// a2a none: all tokens are here, and some of the experts, or some of their width.
Matrix Simulator::experts_in_place(const Matrix& x, int rank, const StageDeclaration& stage, int64_t layer) const {
  const ParallelConfig& config = plan_.config;
  const Share block = share(plan_.axes.experts(), rank);
  const Share own_experts{block.place / config.moe_tp_size(), config.ep_size};
  const Share own_width{block.place % config.moe_tp_size(), config.moe_tp_size()};
  Matrix output(x.rows(), kHidden);
  for (int64_t row = 0; row < x.rows(); ++row) {
    std::array<Word, kHidden> routed{};
    for (const int index : route(layer, x.row(row)))
      if (own_experts.has(index)) expert(layer, index, x.row(row), own_width, routed);
    if (stage.scales_routed)
      for (Word& word : routed) word *= kRoutedScale;
    add_row(routed, output.row(row));
    if (stage.adds_shared) test::shared_expert(layer, x.row(row), block, output.row(row));
  }
  return output;
}

// Own rows go to the ranks that have their experts, and come back as complete results.
Simulator::Rows Simulator::experts_by_dispatch(const Rows& x, int64_t layer) const {
  struct Sent {
    int source;
    int64_t row;
    int expert;
  };
  std::vector<std::vector<Sent>> inbox(ranks_);
  Rows result;
  for (int rank = 0; rank < ranks_; ++rank) {
    result.emplace_back(x[rank].rows(), kHidden);
    const std::vector<int> owners = plan_.axes.group(plan_.axes.experts(), rank);
    for (int64_t row = 0; row < x[rank].rows(); ++row)
      for (const int index : route(layer, x[rank].row(row)))
        inbox[owners[index % owners.size()]].push_back({rank, row, index});
  }
  for (int rank = 0; rank < ranks_; ++rank)
    for (const Sent& sent : inbox[rank]) {
      std::array<Word, kHidden> output{};
      expert(layer, sent.expert, x[sent.source].row(sent.row), {}, output);
      for (Word& word : output) word *= kRoutedScale;
      add_row(output, result[sent.source].row(sent.row));
    }
  return result;
}

Simulator::Rows Simulator::select_rows(Activation<Rows> delta, std::optional<Complete<Rows>> residual,
                                       const StageStep& step) {
  const Rows& x = std::visit(
      [](const auto& any) -> const Rows& {
        if constexpr (requires { any.summands(); }) {
          return any.summands();
        } else {
          return any.rows();
        }
      },
      delta);
  Rows result;
  for (int rank = 0; rank < ranks_; ++rank) {
    const std::vector<int64_t>& had = places(rank, step.in.layout.sharded);
    shards_ = &logit_shards_;
    const std::vector<int64_t>& wanted = places(rank, step.out.layout.sharded);
    Matrix& own = result.emplace_back(static_cast<int64_t>(wanted.size()), kHidden);
    for (size_t i = 0; i < wanted.size(); ++i) {
      shards_ = &logit_shards_;
      const Origin at = origin(wanted[i], false);
      shards_ = &token_shards_;
      const std::vector<int>& selected = batches_[at.dp].logit_rows;
      if (at.batch_row >= static_cast<int64_t>(selected.size())) continue;
      const int64_t sought = place(at.dp, selected[at.batch_row], is_context_order(step.in.layout));
      const auto add_from = [&](const std::vector<int64_t>& held, const Matrix& rows) {
        const auto found = std::lower_bound(held.begin(), held.end(), sought);
        if (found != held.end() && *found == sought)
          add_row(rows.row(found - held.begin()), own.row(static_cast<int64_t>(i)));
      };
      add_from(had, x[rank]);
      // One of those that hold the same row of the residual adds it.
      if (residual && plan_.axes.place(step.out.owed - residual->layout().sharded, rank) == 0)
        add_from(places(rank, residual->layout().sharded), residual->rows()[rank]);
    }
    shards_ = &token_shards_;
  }
  shards_ = &logit_shards_;
  return result;
}

// Each rank makes its columns, and the ranks along the vocabulary's axes put theirs together.
Simulator::Rows Simulator::head(const Rows& x, const StageStep& step) const {
  const AxisSet axes = step.stage.inside.empty() ? AxisSet{} : step.stage.inside.front().axes;
  Rows result;
  for (int rank = 0; rank < ranks_; ++rank) {
    Matrix& logits = result.emplace_back(x[rank].rows(), kVocabulary);
    for (const int peer : plan_.axes.group(axes, rank))
      for (int64_t row = 0; row < logits.rows(); ++row)
        for (int token = 0; token < kVocabulary; ++token)
          if (share(axes, peer).has(token)) logits.row(row)[token] = logit(x[peer].row(row), token);
  }
  return result;
}

}  // namespace plait::test
