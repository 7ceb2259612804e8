// The ranks of one process: a thread each, with its shard of the model, its KV pool and its communicators.
//
// Owns everything about them. Its calls come from one thread at a time. launch() hands every rank the same agreed step
// and returns; ranks do their steps in order, each at its own pace, and collect() waits until all have done the oldest.
// Ranks meet in collectives only; nothing else is shared but the step. Where the world has other processes, each has a
// team of its own ranks, and all teams run the same steps in the same order (host_team.h).
#pragma once

#include <array>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "comm/world.h"
#include "engine/exchange_options.h"
#include "engine/kv_pool.h"
#include "engine/rank_backend.h"
#include "engine/routed_expert_pool.h"
#include "engine/step_traffic.h"
#include "layout/plan.h"
#include "model/model.h"
#include "topology/topology.h"

namespace plait {

struct TeamOptions {
  ParallelConfig parallel;  // has passed judge()
  ModelOptions model;       // its shard is each rank's own
  int threads = 0;          // of all ranks together; 0: one per usable core
  StepLimits limits{.decode = {.requests_per_rank = 128}};
  bool own_threads = false;            // also for a single rank, so that launch() returns before the step is done
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

  // The same in two halves; at most kMostStepsUnderWay have been launched and not collected. One thread launches, one
  // (the same or another) collects. `choose` also writes down which token it chose for each state slot, for rows of the
  // next step that are future tokens (model/step.h).
  static constexpr int kMostStepsUnderWay = 8;
  struct Chosen {
    std::span<const int32_t> before;  // [state slots] by the step before
    std::span<int32_t> now;           // [state slots]
  };
  using Choose = std::function<void(int dp, ThreadPool& pool, Rows logits, const Chosen& chosen)>;
  void launch(std::span<const Step* const> of_dp_ranks, Choose choose, TeamObserver* observer = nullptr);
  Status collect();

  // The rank that has the logits of a data-parallel rank.
  int logits_rank(int dp) const;
  bool runs_ahead() const;  // launch() returns before the step is done
  // What ended the world, noticed without a step; empty while it works.
  std::optional<Error> failure() const;
  comm::World& world() { return *world_; }

  const Topology& topology() const { return topology_; }
  const Plan& plan() const { return programs_.front().plan; }
  // Of the last step.
  const Plan& last_plan() const { return launch_of(launched_).program->plan; }
  const AgreedStep& last_step() const { return launch_of(launched_).step; }
  // What the ranks here have received from others so far.
  StepTraffic traffic() const;
  // Of each rank here: the time of its steps so far, without waiting for the pipeline stage before. To be asked for
  // while no step is under way.
  std::vector<double> busy_seconds() const;

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
  Status add_attention_ranks(Rank& rank);
  Status add_exchange(Rank& rank);
  // A step from launch() to the collect() of the one after it.
  struct Launch {
    AgreedStep step;
    const Program* program = nullptr;
    std::vector<Step> padded;
    Choose choose;
    TeamObserver* observer = nullptr;
    bool needs_chosen = false;                 // some token id is a future token
    std::vector<std::vector<int32_t>> chosen;  // [dp][state slot]
    int choosing = 0;                          // data-parallel ranks here that have yet to choose
    int busy = 0;                              // ranks
  };
  void prepare(Launch& launch, std::span<const Step* const> of_dp_ranks);
  Launch& launch_of(uint64_t number) { return launches_[number % launches_.size()]; }
  const Launch& launch_of(uint64_t number) const { return launches_[number % launches_.size()]; }
  void work(Rank& rank);
  void wait_for_chosen(const Launch& launch);
  std::span<const int32_t> chosen_before(Rank& rank, uint64_t number);
  void run_step(Rank& rank, uint64_t number);
  std::optional<Error> try_step(Rank& rank, uint64_t number);

  const ModelConfig config_;
  const TeamOptions options_;
  const Topology topology_;
  std::vector<Program> programs_;  // without context parallelism; with it, if there is any
  std::shared_ptr<comm::World> world_;
  std::vector<std::unique_ptr<Rank>> ranks_;                       // that live here, ascending
  std::vector<std::unique_ptr<RoutedExpertPool>> routed_experts_;  // [dp], or none

  // One more than can be under way, and the one before those, which the oldest refers to.
  std::array<Launch, kMostStepsUnderWay + 2> launches_;
  int64_t state_slots_ = 0;
  int64_t page_tokens_ = 0;
  int64_t low_latency_tokens_ = 0;  // of a rank, that the low-latency exchange has room for
  uint64_t launched_ = 0;           // steps are numbered from 1
  uint64_t collected_ = 0;
  std::mutex mutex_;  // of both, of `choosing` and `busy` of a launch, and of what follows
  std::condition_variable begin_, chosen_, end_;
  bool stopping_ = false;
  std::optional<Error> failure_;
};

}  // namespace plait
