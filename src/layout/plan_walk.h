// Walks a plan over a back end: the engine's ranks, or a simulation of all of them in one thread.
//
// The walker owns the stream's types: it hands complete rows to stages and owed sums to reductions, so a back end never
// decides whether to communicate. A Backend has a type Rows (its handle of an activation) and
//
//   Rows all_reduce(PartialSum<Rows>, const Collective&);        // may leave part of the sum owed: collective.after
//   Rows reduce_scatter(PartialSum<Rows>, const Collective&);
//   Rows all_gather(Complete<Rows>, const Collective&);
//   Rows slice(const Rows&, const Placement&, const Collective&);
//   Normed add_norm(Complete<Rows> delta, std::optional<Complete<Rows>> residual, const StageStep&, int64_t layer);
//   Normed all_reduce_add_norm(PartialSum<Rows> delta, Complete<Rows> residual, const FusedAllReduceAddNorm&,
//                              int64_t layer);
//   Rows rowwise(Complete<Rows>, const StageStep&, int64_t layer);       // latent projection
//   Rows anchored(Complete<Rows>, const StageStep&, int64_t layer);      // attention, dense MLP, experts, head
//   Rows embed(const StageStep&);
//   Rows add(Complete<Rows>, const Complete<Rows>& residual);
//   Rows shared_expert(const Complete<Rows>& x, int64_t layer);
//   Rows send_receive(Complete<Rows>);
//   Rows select_rows(Activation<Rows>, std::optional<Complete<Rows>> residual, const StageStep&);
//
// where Normed is NormedRows<Rows>. Rows are in the order that RowShards gives. One thread at a time.
#pragma once

#include <optional>
#include <utility>

#include "layout/activation.h"
#include "layout/plan.h"

namespace plait {

template <typename Rows>
struct NormedRows {
  Complete<Rows> normed;
  Complete<Rows> residual;
};

// Between segments.
template <typename Rows>
struct Stream {
  std::optional<Activation<Rows>> delta;  // absent before the embedding
  std::optional<Complete<Rows>> residual;
};

template <typename Backend>
class PlanWalker {
 public:
  using Rows = typename Backend::Rows;

  explicit PlanWalker(Backend& backend) : backend_(backend) {}

  void walk(const Segment& segment, int64_t layer, Stream<Rows>& stream) {
    for (const PlanStep& step : segment.steps)
      std::visit([&](const auto& each) { perform(each, layer, stream); }, step);
  }

  // All segments in order; the delta that remains is the logits.
  Stream<Rows> walk(const Plan& plan) {
    Stream<Rows> stream;
    for (const ScheduledSegment& at : plan.order) walk(plan.segments[at.segment], at.layer, stream);
    return stream;
  }

 private:
  void perform(const Collective& collective, int64_t, Stream<Rows>& stream) {
    if (collective.payload == Payload::kResidual) {
      Activation<Rows> moved = move(collective, Activation<Rows>(take_residual(stream)));
      stream.residual.emplace(std::get<Complete<Rows>>(std::move(moved)));
      return;
    }
    stream.delta = move(collective, take_delta(stream));
  }

  void perform(const FusedAllReduceAddNorm& fused, int64_t layer, Stream<Rows>& stream) {
    PartialSum<Rows> owed = owed_sum(take_delta(stream));
    put(backend_.all_reduce_add_norm(std::move(owed), take_residual(stream), fused, layer), stream);
  }

  void perform(const StageStep& step, int64_t layer, Stream<Rows>& stream) {
    switch (step.stage.kind) {
      case StageKind::kEmbedding:
        stream.delta = activation(backend_.embed(step), step.out);
        break;
      case StageKind::kAddNorm:
        put(backend_.add_norm(complete(take_delta(stream)), take_any_residual(stream), step, layer), stream);
        break;
      case StageKind::kLatentProjection:
        stream.delta = activation(backend_.rowwise(complete(take_delta(stream)), step, layer), step.out);
        break;
      case StageKind::kSharedExpert:
        add_shared_expert(layer, stream);
        break;
      case StageKind::kResidualAdd:
        add_residual(stream);
        break;
      case StageKind::kSendReceive:
        stream.delta = activation(backend_.send_receive(complete(take_delta(stream))), step.out);
        break;
      case StageKind::kSelectRows:
        stream.delta = activation(backend_.select_rows(take_delta(stream), take_any_residual(stream), step), step.out);
        break;
      case StageKind::kAttention:
      case StageKind::kDenseMlp:
      case StageKind::kExperts:
      case StageKind::kHead:
        stream.delta = activation(backend_.anchored(complete(take_delta(stream)), step, layer), step.out);
        break;
    }
  }

  Activation<Rows> move(const Collective& collective, Activation<Rows> value) {
    PLAIT_ASSERT(placement_of(value) == collective.before, "a collective moves what its plan says is there");
    switch (collective.kind) {
      case CollectiveKind::kAllReduce:
        return activation(backend_.all_reduce(owed_sum(std::move(value)), collective), collective.after);
      case CollectiveKind::kReduceScatter:
        return activation(backend_.reduce_scatter(owed_sum(std::move(value)), collective), collective.after);
      case CollectiveKind::kAllGather:
        return activation(backend_.all_gather(complete(std::move(value)), collective), collective.after);
      case CollectiveKind::kSlice: {
        // Keeping some rows does not look at values, so it may precede their sum.
        const auto rows = [](const auto& any) -> const Rows& {
          if constexpr (requires { any.summands(); }) {
            return any.summands();
          } else {
            return any.rows();
          }
        };
        return activation(backend_.slice(std::visit(rows, value), collective.before, collective), collective.after);
      }
      case CollectiveKind::kAllToAll:
      case CollectiveKind::kSendReceive:
        break;
    }
    PLAIT_ASSERT(false, "stages move these inside themselves");
    return value;
  }

  void add_shared_expert(int64_t layer, Stream<Rows>& stream) {
    const auto& x = std::get<Complete<Rows>>(*stream.delta);
    const Complete<Rows> output(backend_.shared_expert(x, layer), x.layout());
    const Layout layout = stream.residual->layout();
    stream.residual.emplace(backend_.add(take_residual(stream), output), layout);
  }

  void add_residual(Stream<Rows>& stream) {
    std::optional<Complete<Rows>> residual = take_any_residual(stream);
    if (!residual) return;
    const Layout layout = residual->layout();
    stream.delta = Complete<Rows>(backend_.add(complete(take_delta(stream)), *residual), layout);
  }

  static void put(NormedRows<Rows> rows, Stream<Rows>& stream) {
    stream.delta = std::move(rows.normed);
    stream.residual.emplace(std::move(rows.residual));
  }

  static Activation<Rows> take_delta(Stream<Rows>& stream) {
    PLAIT_ASSERT(stream.delta.has_value(), "the embedding comes first");
    return std::move(*std::exchange(stream.delta, std::nullopt));
  }
  static Complete<Rows> take_residual(Stream<Rows>& stream) {
    PLAIT_ASSERT(stream.residual.has_value(), "this step has a residual");
    return std::move(*std::exchange(stream.residual, std::nullopt));
  }
  static std::optional<Complete<Rows>> take_any_residual(Stream<Rows>& stream) {
    return std::exchange(stream.residual, std::nullopt);
  }
  static Complete<Rows> complete(Activation<Rows> value) {
    PLAIT_ASSERT(std::holds_alternative<Complete<Rows>>(value), "a stage takes complete rows");
    return std::get<Complete<Rows>>(std::move(value));
  }
  static PartialSum<Rows> owed_sum(Activation<Rows> value) {
    PLAIT_ASSERT(std::holds_alternative<PartialSum<Rows>>(value), "only an owed sum can be summed");
    return std::get<PartialSum<Rows>>(std::move(value));
  }

  Backend& backend_;
};

}  // namespace plait
