#include "engine/rank_backend.h"

#include <numeric>

#include "base/assert.h"

namespace plait {
namespace {

// The rows of an activation, whether or not a sum is owed.
const RowBlock& summands(const Activation<RowBlock>& activation) {
  if (const auto* partial = std::get_if<PartialSum<RowBlock>>(&activation)) return partial->summands();
  return std::get<Complete<RowBlock>>(activation).rows();
}

std::string_view name_of_payload(const Collective& collective) {
  return collective.payload == Payload::kResidual ? "residual" : "delta";
}

}  // namespace

void RankBackend::begin(const Plan& plan, const AgreedStep& step, std::span<const int32_t> chosen_before,
                        ForwardObserver* observer) {
  chosen_before_ = chosen_before;
  observer_ = observer;
  plan_ = &plan;
  step_ = &step;
  token_places_.emplace(plan, step.rows, parts_.rank);
  logit_places_.emplace(plan, step.logit_rows, parts_.rank);
  places_ = &*token_places_;
  choices_.clear();
  parts_.model->begin_step(parts_.context_pages ? parts_.context_pages->begin(own_step()) : own_step(), own_rows());
}

// Of this data-parallel rank's step, in the order in which the rank holds them; empty: all, as they are.
std::vector<int64_t> RankBackend::own_rows() const {
  if (!plan_->form.context_parallel) return {};
  const int dp = plan_->axes.place(plan_->axes.attn_dp(), parts_.rank);
  const StepRows& rows = token_places_->rows();
  const ContextOrder order = context_order(dp);
  std::vector<int64_t> own;
  for (const RowRun& run : token_places_->held(plan_->axes.attn_dp() | plan_->axes.attn_cp()))
    for (int64_t row = run.begin; row < run.begin + run.count; ++row)
      own.push_back(order.batch_row(row - rows.begin[dp]));
  return own;
}

ContextOrder RankBackend::context_order(int dp) const {
  return {plan_->config.strategy(), plan_->config.attn_cp_size, token_places_->rows().padded_rows[dp]};
}

const Step& RankBackend::own_step() const {
  return step_->of_dp_ranks[plan_->axes.place(plan_->axes.attn_dp(), parts_.rank)];
}

void RankBackend::check(Status status) const {
  if (status.has_error()) throw RankFailure(std::move(status).error());
}

void RankBackend::copy(const RowCopy& copy, const Rows& from, Rows& to) const {
  std::copy_n(from.view().row(copy.from), copy.count * from.cols(), to.view().row(copy.to));
}

// -- Collectives --

RowBlock RankBackend::all_reduce(PartialSum<Rows> x, const Collective& collective) {
  Rows sum = std::move(x).take();
  check(parts_.groups(collective.axes)
            .all_reduce(name_of_payload(collective), sum.data(), sum.data(), sum.elements(), DType::kF32));
  return sum;
}

RowBlock RankBackend::reduce_scatter(PartialSum<Rows> x, const Collective& collective) {
  const Rows in = std::move(x).take();
  const int64_t cols = in.cols();
  const PieceMove& move = places_->pieces(collective.after.layout.sharded, collective.axes);
  Rows pieces;
  if (!move.in_order) {
    pieces = arena_.take(in.rows(), cols);
    for (const RowCopy& run : move.to_block) copy({run.to, run.from, run.count}, in, pieces);
  }
  std::vector<int64_t> counts;
  for (const int64_t rows : move.rows) counts.push_back(rows * cols);
  Rows out = arena_.take(places_->count(collective.after.layout.sharded), cols);
  check(parts_.groups(collective.axes)
            .reduce_scatter(name_of_payload(collective), move.in_order ? in.data() : pieces.data(), out.data(), counts,
                            DType::kF32));
  return out;
}

RowBlock RankBackend::all_gather(Complete<Rows> x, const Collective& collective) {
  const Rows in = std::move(x).take();
  const int64_t cols = in.cols();
  const PieceMove& move = places_->pieces(collective.before.layout.sharded, collective.axes);
  std::vector<int64_t> counts;
  for (const int64_t rows : move.rows) counts.push_back(rows * cols);
  Rows pieces = arena_.take(places_->count(collective.after.layout.sharded), cols);
  check(parts_.groups(collective.axes)
            .all_gather(name_of_payload(collective), in.data(), pieces.data(), counts, DType::kF32));
  if (move.in_order) return pieces;
  Rows out = arena_.take(pieces.rows(), cols);
  for (const RowCopy& run : move.to_block) copy(run, pieces, out);
  return out;
}

RowBlock RankBackend::slice(const Rows& x, const Placement& placement, const Collective& collective) {
  const std::vector<RowRun>& wanted = places_->held(collective.after.layout.sharded);
  Rows out = arena_.take(places_->count(collective.after.layout.sharded), x.cols());
  for (const RowCopy& run : pick_rows(places_->held(placement.layout.sharded), wanted)) copy(run, x, out);
  return out;
}

RowBlock RankBackend::send_receive(Complete<Rows> x) {
  Rows rows = std::move(x).take();
  PLAIT_ASSERT(parts_.pipeline != nullptr, "a boundary between pipeline stages");
  check(parts_.pipeline->send("hidden state", rows.data(), rows.elements(), DType::kF32, parts_.pipeline_stage + 1));
  return rows;
}

Activation<RowBlock> RankBackend::receive(const StageStep& send) {
  Rows rows = arena_.take(places_->count(send.out.layout.sharded), parts_.config->hidden_size);
  PLAIT_ASSERT(parts_.pipeline != nullptr, "a boundary between pipeline stages");
  check(parts_.pipeline->receive("hidden state", rows.data(), rows.elements(), DType::kF32, parts_.pipeline_stage - 1));
  return activation(std::move(rows), send.out);
}

void RankBackend::own_logits(const Stream<Rows>& stream, const std::function<void(plait::Rows)>& use) const {
  const auto& logits = std::get<Complete<Rows>>(*stream.delta);
  const int dp = plan_->axes.place(plan_->axes.attn_dp(), parts_.rank);
  const StepRows& rows = logit_places_->rows();
  if (rows.true_rows[dp] == 0) return;
  const RowRun own{rows.begin[dp], rows.true_rows[dp]};
  const auto copies = pick_rows(logit_places_->held(logits.layout().sharded), std::array{own});
  PLAIT_ASSERT(copies.size() == 1, "a data-parallel rank's logits lie together");
  use(plait::Rows(logits.rows().view().row(copies.front().from), own.count, logits.rows().cols()));
}

// -- Stages --

NormedRows<RowBlock> RankBackend::add_norm(Complete<Rows> delta, std::optional<Complete<Rows>> residual,
                                           const StageStep& step, int64_t layer) {
  const Layout layout = delta.layout();
  Rows rows = std::move(delta).take();
  Rows normed = arena_.take(rows.rows(), rows.cols());
  if (!residual) {
    parts_.model->norm(parts_.context, step.stage.norm, layer, rows.view(), normed.view());
    return {Complete<Rows>(std::move(normed), layout), Complete<Rows>(std::move(rows), layout)};
  }
  Rows sum = std::move(*residual).take();
  parts_.model->add_norm(parts_.context, step.stage.norm, layer, rows.view(), sum.view(), normed.view());
  return {Complete<Rows>(std::move(normed), layout), Complete<Rows>(std::move(sum), layout)};
}

// On CPU ranks the fusion is a saving of the plan only: one call instead of two.
NormedRows<RowBlock> RankBackend::all_reduce_add_norm(PartialSum<Rows> delta, Complete<Rows> residual,
                                                      const FusedAllReduceAddNorm& fused, int64_t layer) {
  const Layout layout = fused.all_reduce.after.layout;
  Complete<Rows> sum(all_reduce(std::move(delta), fused.all_reduce), layout);
  return add_norm(std::move(sum), std::move(residual), fused.add_norm, layer);
}

RowBlock RankBackend::add(Complete<Rows> x, const Complete<Rows>& y) {
  PLAIT_ASSERT(x.layout() == y.layout(), "rows are added where both are");
  Rows sum = std::move(x).take();
  for (int64_t i = 0; i < sum.elements(); ++i) sum.data()[i] += y.rows().data()[i];
  return sum;
}

RowBlock RankBackend::embed(const StageStep& step) {
  const std::vector<RowRun>& held = places_->held(step.out.layout.sharded);
  const StepRows& rows = places_->rows();
  std::vector<int32_t> ids;
  for (const RowRun& run : held)
    for (int64_t row = run.begin; row < run.begin + run.count; ++row) {
      const size_t dp = rows.dp_of(row);
      int64_t place = row - rows.begin[dp];
      if (step.out.layout.order == RowOrderKind::kContext) place = context_order(static_cast<int>(dp)).batch_row(place);
      const int32_t id = step_->of_dp_ranks[dp].token_ids[place];
      ids.push_back(is_future(id) ? chosen_before_[state_slot_of(id)] : id);
    }
  Rows y = arena_.take(std::ssize(ids), parts_.config->hidden_size);
  parts_.model->embed(parts_.context, ids, y.view());
  return y;
}

RowBlock RankBackend::rowwise(Complete<Rows> x, const StageStep&, int64_t layer) {
  Rows y = arena_.take(x.rows().rows(), parts_.model->projection_width());
  parts_.model->project(parts_.context, layer, x.rows().view(), y.view());
  return y;
}

RowBlock RankBackend::anchored(Complete<Rows> x, const StageStep& step, int64_t layer) {
  const AxisSet sharded = x.layout().sharded;
  const Rows in = std::move(x).take();
  switch (step.stage.kind) {
    case StageKind::kAttention:
      return attention(in, layer);
    case StageKind::kExperts:
      return experts(in, step, sharded, layer);
    case StageKind::kHead:
      return head(in, step);
    default:
      break;
  }
  PLAIT_ASSERT(step.stage.kind == StageKind::kDenseMlp, "a stage with weights");
  Rows y = arena_.take(in.rows(), in.cols());
  parts_.model->dense(parts_.context, layer, in.view(), y.view());
  return y;
}

RowBlock RankBackend::attention(const Rows& x, int64_t layer) {
  Rows y = arena_.take(x.rows(), parts_.config->hidden_size);
  Rows all;  // what the other context ranks' rows leave in the cache, with the own
  ModelStages::AllCacheRows gather;
  if (plan_->form.context_parallel) gather = [&](ConstRows own) { return gather_cache_rows(own, all); };
  Rows projected;
  if (!parts_.model->projection_is_shared()) {
    projected = arena_.take(x.rows(), parts_.model->projection_width());
    parts_.model->project(parts_.context, layer, x.view(), projected.view());
  }
  const plait::Rows in = parts_.model->projection_is_shared() ? x.view() : projected.view();
  ContextPages* const pages = parts_.context_pages;
  if (pages) check(pages->bring(layer, parts_.groups(plan_->axes.attn_cp())));
  parts_.model->attention(parts_.context, layer, pages ? pages->gathered() : *parts_.kv, in, gather, y.view());
  if (pages) pages->keep(layer);
  return y;
}

ConstRows RankBackend::gather_cache_rows(ConstRows own, Rows& all) {
  Rows sent = arena_.take(own.rows, own.cols);
  for (int64_t i = 0; i < own.rows; ++i) std::copy_n(own.row(i), own.cols, sent.view().row(i));
  const int64_t members = plan_->config.attn_cp_size;
  Rows gathered = arena_.take(own.rows * members, own.cols);
  check(parts_.groups(plan_->axes.attn_cp())
            .all_gather("KV latents", sent.data(), gathered.data(), sent.elements(), DType::kF32));
  all = arena_.take(gathered.rows(), own.cols);
  const ContextOrder order = context_order(plan_->axes.place(plan_->axes.attn_dp(), parts_.rank));
  for (int64_t place = 0; place < all.rows(); ++place)
    std::copy_n(gathered.view().row(place), own.cols, all.view().row(order.batch_row(place)));
  return all.view();
}

RowBlock RankBackend::experts(const Rows& x, const StageStep& step, AxisSet sharded, int64_t layer) {
  const Routing routing = parts_.model->route(parts_.context, layer, x.view());
  const int64_t k = parts_.config->gate.experts_per_token;
  if (observer_) observer_->routed_experts(layer, {routing.expert_ids, static_cast<size_t>(x.rows() * k)}, k);
  if (parts_.routed_experts) keep_choices(routing, sharded, layer);
  for (const int64_t row : places_->padding(sharded)) std::fill_n(routing.expert_ids + row * k, k, -1);
  Rows y = arena_.take(x.rows(), x.cols());
  if (parts_.exchange) {
    PLAIT_ASSERT(!step.stage.adds_shared, "beside an exchange the shared expert is a stage of its own");
    dispatch_to_experts(routing, layer, x, y);
    return y;
  }
  if (step.stage.adds_shared)
    parts_.model->shared(parts_.context, layer, x.view(), y.view());
  else
    std::fill_n(y.data(), y.elements(), 0.0f);
  parts_.model->routed(parts_.context, layer, routing, x.view(), y.view());
  return y;
}

// While ids are logical and padding has some too. Goes straight to the places of the rows' KV.
void RankBackend::keep_choices(const Routing& routing, AxisSet sharded, int64_t layer) {
  const auto [entry, is_new] = choices_.try_emplace(sharded.bits());
  if (is_new) {
    const std::vector<int64_t> slots = kv_slots(own_step(), parts_.routed_experts->page_tokens());
    for (const auto& [held, row] : places_->recorded(sharded)) entry->second.push_back({held, slots[row]});
  }
  parts_.routed_experts->write(layer, entry->second, routing.expert_ids);
}

// Own rows go to the ranks that have their experts, and come back as complete results.
void RankBackend::dispatch_to_experts(const Routing& routing, int64_t layer, const Rows& x, Rows& y) {
  comm::ExpertExchange& exchange = *parts_.exchange;
  const int64_t choices = x.rows() * parts_.config->gate.experts_per_token;
  const auto pairs = static_cast<size_t>(choices);
  check(exchange.start_dispatch("experts", step_->exchange_form, x.view(), {routing.expert_ids, pairs}));
  // The gate's memory belongs to the products that follow.
  Rows weights = arena_.take(choices, 1);
  std::copy_n(routing.weights, pairs, weights.data());

  Result<comm::DispatchedRows> received = exchange.finish_dispatch();
  if (received.has_error()) throw RankFailure(std::move(received).error());
  // Without the gaps between experts, which in the low-latency form are nearly all of it.
  std::vector<int64_t> first_row(received->expert_rows.size());
  std::exclusive_scan(received->expert_rows.begin(), received->expert_rows.end(), first_row.begin(), int64_t{0});
  const int64_t rows = std::reduce(received->expert_rows.begin(), received->expert_rows.end());
  Rows in = arena_.take(rows, x.cols());
  for (size_t expert = 0; expert < first_row.size(); ++expert)
    for (int64_t i = 0; i < received->expert_rows[expert]; ++i)
      received->decode(received->expert_first_row[expert] + i, in.view().row(first_row[expert] + i));
  Rows out = arena_.take(rows, x.cols());
  parts_.model->expert_rows(parts_.context, layer, in.view(), first_row, received->expert_rows, out.view());
  check(exchange.start_combine("experts", out.view(), first_row));
  check(exchange.finish_combine({weights.data(), pairs}, y.view()));
}

RowBlock RankBackend::shared_expert(const Complete<Rows>& x, int64_t layer) {
  Rows y = arena_.take(x.rows().rows(), x.rows().cols());
  parts_.model->shared(parts_.context, layer, x.rows().view(), y.view());
  return y;
}

// From here on rows are those whose logits are wanted. Rows that are elsewhere count as zeros of a sum.
RowBlock RankBackend::select_rows(Activation<Rows> delta, std::optional<Complete<Rows>> residual,
                                  const StageStep& step) {
  const Rows& from = summands(delta);
  const StepRows& tokens = token_places_->rows();
  const StepRows& selected = logit_places_->rows();
  Rows out = arena_.take(logit_places_->count(step.out.layout.sharded), from.cols());
  std::fill_n(out.data(), out.elements(), 0.0f);
  // Of those that hold the same row of the residual one adds it.
  const bool adds_residual =
      residual && plan_->axes.place(step.out.owed - residual->layout().sharded, parts_.rank) == 0;
  int64_t to = 0;
  for (const RowRun& run : logit_places_->held(step.out.layout.sharded))
    for (int64_t row = run.begin; row < run.begin + run.count; ++row, ++to) {
      const size_t dp = selected.dp_of(row);
      const int64_t index = row - selected.begin[dp];
      if (index >= selected.true_rows[dp]) continue;
      int64_t place = step_->of_dp_ranks[dp].logit_rows[index];
      if (step.in.layout.order == RowOrderKind::kContext) place = context_order(static_cast<int>(dp)).place(place);
      place += tokens.begin[dp];
      add_held_row(place, step.in.layout.sharded, from, out.view().row(to));
      if (adds_residual) add_held_row(place, residual->layout().sharded, residual->rows(), out.view().row(to));
    }
  places_ = &*logit_places_;
  return out;
}

// y += the row at `place` among the step's tokens, if this rank holds it in that layout.
void RankBackend::add_held_row(int64_t place, AxisSet sharded, const Rows& rows, float* y) const {
  int64_t at = 0;
  for (const RowRun& run : token_places_->held(sharded)) {
    if (place >= run.begin && place < run.begin + run.count) {
      const float* row = rows.view().row(at + place - run.begin);
      for (int64_t j = 0; j < rows.cols(); ++j) y[j] += row[j];
      return;
    }
    at += run.count;
  }
}

// The own part of the vocabulary, then everybody's columns side by side.
RowBlock RankBackend::head(const Rows& x, const StageStep& step) {
  const int64_t rows = x.rows(), vocabulary = parts_.config->vocab_size;
  if (step.stage.inside.empty()) {
    Rows logits = arena_.take(rows, vocabulary);
    parts_.model->logits(parts_.context, x.view(), logits.view());
    return logits;
  }
  const AxisSet axes = step.stage.inside.front().axes;
  const int members = plan_->axes.width(axes);
  std::vector<int64_t> counts;
  for (int i = 0; i < members; ++i) counts.push_back(rows * ShardPart{i, members}.of(vocabulary).size());
  const int64_t own_columns = ShardPart{plan_->axes.place(axes, parts_.rank), members}.of(vocabulary).size();
  Rows own = arena_.take(rows, own_columns);
  parts_.model->logits(parts_.context, x.view(), own.view());
  Rows gathered = arena_.take(rows, vocabulary);
  check(parts_.groups(axes).all_gather("logits", own.data(), gathered.data(), counts, DType::kF32));
  Rows logits = arena_.take(rows, vocabulary);
  const float* block = gathered.data();
  for (int i = 0; i < members; ++i) {
    const Range columns = ShardPart{i, members}.of(vocabulary);
    for (int64_t row = 0; row < rows; ++row, block += columns.size())
      std::copy_n(block, columns.size(), logits.view().row(row) + columns.begin);
  }
  return logits;
}

}  // namespace plait
