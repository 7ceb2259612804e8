// The ranks of one process: a thread each, with its shard of the model, its KV pool and its communicators.
//
// Owns everything about them. run() is called by one thread at a time, hands every rank the same agreed step and
// returns when all have finished it. Ranks meet in collectives only; nothing else is shared but the step. Where the
// world has other processes, each has a team of its own ranks, and all teams run the same steps in the same order
// (host_team.h).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "comm/world.h"
#include "engine/kv_pool.h"
#include "engine/rank_backend.h"
#include "engine/routed_expert_pool.h"
#include "engine/step_traffic.h"
#include "layout/plan.h"
#include "model/model.h"
#include "topology/topology.h"

namespace plait {

struct TeamOptions {
  ParallelConfig parallel;             // has passed judge()
  ModelOptions model;                  // its shard is each rank's own
  int threads = 0;                     // of all ranks together; 0: one per usable core
  int64_t low_latency_tokens = 128;    // of a rank: the capacity of the low-latency expert exchange
  bool keep_routed_experts = false;    // a RoutedExpertPool beside the KV pools of each data-parallel rank
  std::optional<PaddingMode> padding;  // for tests; absent: chosen per step
  std::shared_ptr<comm::World> world;  // absent: all ranks are threads of this process
  std::function<Plan(Plan)> replan;    // for tests: what ranks carry out instead of what was planned
};

// Sees what ranks compute, on their threads. For tests.
class TeamObserver {
 public:
  virtual ~TeamObserver() = default;
  virtual ForwardObserver* of_rank(int /*rank*/) { return nullptr; }
};

class RankTeam {
 public:
  // `models`: without weights, [ranks of this process], each with its shard (shard_of). kUnsupported, kInvalid: what
  // cannot be planned.
  static Result<std::unique_ptr<RankTeam>> create(const ModelConfig& config, const TeamOptions& options,
                                                  std::vector<std::unique_ptr<Model>> models);
  ~RankTeam();

  // Of all ranks here, merged by name.
  std::vector<WeightRequest> weight_requests();
  Status finish_loading();
  void allocate_kv(int64_t pages, int64_t page_tokens, int64_t sequences);

  // The step of each data-parallel rank, with the pages of its own pools. `use` gets the logits of each data-parallel
  // rank that wanted some and has them here, [its logit rows, vocab], on the thread of the rank that has them. A
  // failure names what ended the ranks' world, which does not work again.
  using UseLogits = std::function<void(int dp, ThreadPool& pool, Rows logits)>;
  Status run(std::span<const Step* const> of_dp_ranks, const UseLogits& use, TeamObserver* observer = nullptr);

  // The rank that has the logits of a data-parallel rank.
  int logits_rank(int dp) const;
  // What ended the world, noticed without a step; empty while it works.
  std::optional<Error> failure() const;
  comm::World& world() { return *world_; }

  const Topology& topology() const { return topology_; }
  const Plan& plan() const { return programs_.front().plan; }
  // Of the last step.
  const Plan& last_plan() const { return program_->plan; }
  const AgreedStep& last_step() const { return step_; }
  // What the ranks here have received from others so far.
  StepTraffic traffic() const;

  Model& model_of(int rank);  // which lives here
  Model& first_model() { return model_of(first_rank()); }
  int first_rank() const;                          // of those here
  RoutedExpertPool* routed_experts(int dp) const;  // what ranks here chose; null if it is not kept
  int dp_ranks() const { return options_.parallel.attn_dp_size(); }

 private:
  struct Rank;
  // A pipeline boundary as its two sides walk it.
  struct Boundary {
    Segment sender, receiver;
    StageStep send;
  };
  static Boundary split(const Segment& segment);
  // A plan, and its pipeline boundaries by index of the segment.
  struct Program {
    Plan plan;
    std::map<int, Boundary> boundaries;
  };
  static Program make_program(Plan plan);
  RankTeam(const ModelConfig& config, const TeamOptions& options, Topology topology);
  Status add_rank(int index, std::unique_ptr<Model> model);
  Status add_exchange(Rank& rank);
  comm::ExchangeForm exchange_form(bool any_prefill) const;
  void work(Rank& rank);
  void run_step(Rank& rank);
  std::optional<Error> try_step(Rank& rank);

  const ModelConfig config_;
  const TeamOptions options_;
  const Topology topology_;
  std::vector<Program> programs_;  // without context parallelism; with it, if there is any
  std::shared_ptr<comm::World> world_;
  std::vector<std::unique_ptr<Rank>> ranks_;                       // that live here, ascending
  std::vector<std::unique_ptr<RoutedExpertPool>> routed_experts_;  // [dp], or none

  // The step in hand. Written by run() while all ranks wait.
  AgreedStep step_;
  const Program* program_ = nullptr;
  std::vector<Step> padded_;
  uint64_t steps_ = 0;
  const UseLogits* use_ = nullptr;
  TeamObserver* observer_ = nullptr;
  std::mutex mutex_;
  std::condition_variable begin_, end_;
  uint64_t steps_begun_ = 0;
  int busy_ = 0;
  bool stopping_ = false;
  std::optional<Error> failure_;
};

}  // namespace plait
