// One rank's part in a plan: stages are the model's, moves are the communicators'.
//
// What PlanWalker (layout/plan_walk.h) calls. Owned and called by the rank's thread; begin() once per step. A failure
// of a collective ends the walk as RankFailure, and the world with it (comm/communicator.h).
#pragma once

#include <exception>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "comm/expert_exchange.h"
#include "engine/context_pages.h"
#include "engine/routed_expert_pool.h"
#include "engine/row_blocks.h"
#include "engine/step_places.h"
#include "kernels/context.h"
#include "layout/plan_walk.h"
#include "model/model.h"
#include "topology/topology.h"

namespace plait {

// Thrown through the walk, caught by the rank's thread.
struct RankFailure : std::exception {
  explicit RankFailure(Error why) : error(std::move(why)) {}
  const char* what() const noexcept override { return error.message.c_str(); }
  Error error;
};

// A step as all ranks of a pipeline stage see it. What it points to outlives the step.
struct AgreedStep {
  StepRows rows;        // of tokens
  StepRows logit_rows;  // of rows whose logits are wanted
  comm::ExchangeForm exchange_form = comm::ExchangeForm::kNormal;
  int64_t page_tokens = 0;
  std::span<const Step> of_dp_ranks;  // [dp], token ids and positions padded to `rows`
};

class RankBackend {
 public:
  using Rows = RowBlock;
  // The communicator of the ranks along a set of axes; every member's calls come in the same order.
  using Groups = std::function<comm::Communicator&(AxisSet axes)>;

  struct Parts {
    ModelStages* model = nullptr;
    const ModelConfig* config = nullptr;
    const KvMemory* kv = nullptr;
    ContextPages* context_pages = nullptr;  // null: every context rank has all pages, in `kv`
    kernels::Context context;
    Groups groups;
    RoutedExpertPool* routed_experts = nullptr;  // of the data-parallel rank; null: choices are not kept
    comm::ExpertExchange* exchange = nullptr;    // of the expert group; null: every rank of it has every token
    comm::Communicator* pipeline = nullptr;      // the same place in every pipeline stage; may be null if there is one
    int pipeline_stage = 0;
    int rank = 0;  // in the pipeline stage
  };
  explicit RankBackend(const Parts& parts) : parts_(parts) {}

  // `chosen_before`: [state slot] what the step before chose for this data-parallel rank.
  void begin(const Plan& plan, const AgreedStep& step, std::span<const int32_t> chosen_before,
             ForwardObserver* observer);
  // What the pipeline stage before sends in that step of a boundary.
  Activation<Rows> receive(const StageStep& send);
  // After the walk: the logits of this data-parallel rank, if it wanted some.
  void own_logits(const Stream<Rows>& stream, const std::function<void(plait::Rows)>& use) const;

  // -- For PlanWalker --
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
  Rows send_receive(Complete<Rows> x);
  Rows select_rows(Activation<Rows> delta, std::optional<Complete<Rows>> residual, const StageStep& step);

 private:
  const Step& own_step() const;
  std::vector<int64_t> own_rows() const;
  ContextOrder context_order(int dp) const;
  Rows attention(const Rows& x, int64_t layer);
  ConstRows gather_cache_rows(ConstRows own, Rows& all);
  Rows experts(const Rows& x, const StageStep& step, AxisSet sharded, int64_t layer);
  void keep_choices(const Routing& routing, AxisSet sharded, int64_t layer);
  void dispatch_to_experts(const Routing& routing, int64_t layer, const Rows& x, Rows& y);
  Rows head(const Rows& x, const StageStep& step);
  void add_held_row(int64_t place, AxisSet sharded, const Rows& rows, float* y) const;
  void copy(const RowCopy& copy, const Rows& from, Rows& to) const;
  void check(Status status) const;

  const Parts parts_;
  RowArena arena_;
  const Plan* plan_ = nullptr;
  const AgreedStep* step_ = nullptr;
  std::span<const int32_t> chosen_before_;
  ForwardObserver* observer_ = nullptr;
  std::optional<StepPlaces> token_places_, logit_places_;
  std::map<uint32_t, std::vector<RoutedExpertPool::Choice>> choices_;  // by the layout of the routed rows
  const StepPlaces* places_ = nullptr;  // of the rows that are on their way: tokens, later selected rows
};

}  // namespace plait
