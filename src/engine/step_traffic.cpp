#include "engine/step_traffic.h"

namespace plait {
namespace {

// Rows of a data-parallel rank.
double mean_rows(const StepRows& rows) {
  return static_cast<double>(rows.total()) / static_cast<double>(rows.padded_rows.size());
}

class Tally {
 public:
  Tally(const Plan& plan, const AgreedStep& step) : plan_(plan), step_(step), rows_(mean_rows(step.rows)) {}

  void operator()(const Collective& collective) {
    if (collective.kind == CollectiveKind::kSlice) return;
    add(collective.kind, collective.payload == Payload::kResidual ? "residual" : "delta",
        bytes_per_token(plan_, collective));
  }
  void operator()(const FusedAllReduceAddNorm& fused) { (*this)(fused.all_reduce); }
  void operator()(const StageStep& step) {
    if (step.stage.kind == StageKind::kSelectRows) rows_ = mean_rows(step_.logit_rows);
    if (step.stage.kind == StageKind::kSendReceive)
      add(CollectiveKind::kSendReceive, "hidden state", bytes_per_token(plan_, step));
    for (const StageTraffic& inside : step.stage.inside) {
      if (inside.of_history) {
        add_history(inside, step);
        continue;
      }
      const bool experts = inside.kind == CollectiveKind::kAllToAll;
      add(inside.kind, experts ? "experts" : inside.what,
          bytes_per_token(plan_, inside, step.stage.needs.value_or(step.in.layout)));
    }
  }
  StepTraffic take() && { return std::move(traffic_); }

 private:
  void add(CollectiveKind kind, const std::string& what, double bytes_per_token) {
    const char* operation = kind == CollectiveKind::kSendReceive ? "send" : name_of(kind);
    traffic_[{operation, what}] += bytes_per_token * rows_ * plan_.config.tp_size;
  }

  // Every rank of a data-parallel rank brings the pages of its sequences together.
  void add_history(const StageTraffic& inside, const StageStep& step) {
    size_t pages = 0;
    for (const Step& of_dp : step_.of_dp_ranks) pages += pages_with_history(of_dp, step_.page_tokens).size();
    const auto ranks = static_cast<double>(plan_.config.tp_size) / static_cast<double>(step_.of_dp_ranks.size());
    traffic_[{name_of(inside.kind), inside.what}] += bytes_per_token(plan_, inside, step.in.layout) *
                                                     static_cast<double>(pages) *
                                                     static_cast<double>(step_.page_tokens) * ranks;
  }

  const Plan& plan_;
  const AgreedStep& step_;
  double rows_;
  StepTraffic traffic_;
};

}  // namespace

StepTraffic planned_traffic(const Plan& plan, const AgreedStep& step) {
  Tally tally(plan, step);
  for (const ScheduledSegment& at : plan.order)
    for (const PlanStep& each : plan.segments[static_cast<size_t>(at.segment)].steps) std::visit(tally, each);
  return std::move(tally).take();
}

}  // namespace plait
