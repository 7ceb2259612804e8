// The ranks of all hosts as one: the first host leads, the others follow.
//
// Owns this host's RankTeam and the channels to the other hosts. One thread drives it. The first host sends every step
// to the others before it runs its own part, so all teams run the same steps in the same order; a host that has a
// data-parallel rank's logits chooses its tokens and sends them back. Another host launches steps as they come, and a
// second thread answers them as they end. With one host there are no channels and nothing is sent.
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>

#include "base/error.h"
#include "engine/host_channel.h"
#include "engine/host_messages.h"
#include "engine/rank_team.h"

namespace plait {

class HostTeam {
 public:
  // Without channels if the world is this process alone.
  static Result<HostTeam> open(std::shared_ptr<comm::World> world);

  const std::shared_ptr<comm::World>& world() const { return world_; }
  bool leads() const { return !channels_ || channels_->orders.host() == 0; }

  // Every host says how it got its weights and kernels, and gets the KV pages that all have memory for. An error of any
  // host is every host's, and names the host.
  Result<int64_t> agree_on_start(const Result<int64_t>& own_pages);
  void take(std::unique_ptr<RankTeam> team) { team_ = std::move(team); }
  RankTeam& team() const { return *team_; }

  // -- The first host
  Status launch(std::span<const StepCall> of_dp_ranks);
  Result<SampledRows> collect();  // of the oldest step that was launched
  int most_steps_under_way() const;
  // A pipeline's first stage would wait for the last one's choice: there steps of other requests follow instead.
  bool knows_future_tokens() const { return team_->topology().config().pp_size == 1; }
  // The others begin this phase of the start.
  Status begin_on_others(StartPhase phase);
  // When all steps so far are done: whether every host is ready; else an error that names the host.
  Status agree_on_ready();
  // From now on no rank waits longer than this for another one.
  Status arm_deadlines(std::chrono::milliseconds limit);
  // The others end by themselves.
  Status end();

  // -- The others: run what the first host sends until it ends.
  struct Following {
    std::chrono::milliseconds limit_when_armed;
    std::function<Status(StartPhase)> begin;  // a phase of the start; its errors are this host's report
    std::function<void()> ready;              // deadlines are armed
  };
  Status follow(const Following& following);

  uint64_t followed_steps() const { return followed_steps_->load(std::memory_order_relaxed); }

  // What ended the world; empty while it works.
  std::optional<Error> failure() const { return team_->failure(); }

 private:
  HostTeam() = default;
  Result<StartReport> merge_reports(StartReport own, HostChannel& channel);
  struct Channels {
    HostChannel orders;   // from the first host; also its verdict on the start, which is asked for there
    HostChannel answers;  // to the first host, about steps
  };
  struct Launch {
    HostOrder order;  // of another host, which `calls` refer to
    std::vector<std::vector<SamplingRow>> rows;
    std::vector<StepCall> calls;
    SampledRows sampled;  // of the data-parallel ranks whose logits are here; the others' stay empty
    std::vector<std::vector<int64_t>> expert_slots;
    std::optional<StartReport> report;  // instead of a step: what is to be answered
  };
  // Steps that were launched on another host and not yet answered.
  class LaunchQueue;
  void launch_here(Launch& launch);
  Status finish_on_others(Launch& launch);
  int host_of_logits(int dp) const;
  Status send_to_all(const HostOrder& order);
  Status follow_orders(const Following& following);
  Status follow_step(HostOrder order);
  Status answer_steps();
  Status answer(const Launch& launch);
  // Each host keeps the experts that its own ranks chose; the first host, which answers, needs all of them.
  bool gathers_experts() const { return channels_ && team_->routed_experts(0) != nullptr; }
  std::vector<std::vector<int64_t>> clear_experts(std::span<const StepCall> of_dp_ranks);
  Status send_experts(const std::vector<std::vector<int64_t>>& slots);
  Status receive_experts(const std::vector<std::vector<int64_t>>& slots);

  // The team goes first: its communicators refer to the world, its ranks to what is under way.
  std::shared_ptr<comm::World> world_;
  std::optional<Channels> channels_;
  std::deque<std::unique_ptr<Launch>> launches_;  // of the first host, under way
  std::shared_ptr<LaunchQueue> followed_;         // of another host
  std::unique_ptr<RankTeam> team_;
  std::unique_ptr<std::atomic<uint64_t>> followed_steps_ = std::make_unique<std::atomic<uint64_t>>(0);
};

}  // namespace plait
