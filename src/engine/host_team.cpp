#include "engine/host_team.h"

#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/assert.h"

namespace plait {
namespace {

constexpr std::string_view kReportName = "report of the start";
constexpr std::string_view kVerdictName = "verdict on the start";
constexpr std::string_view kOrderName = "order";
constexpr std::string_view kTokensName = "tokens";
constexpr std::string_view kExpertsName = "routed experts";

// With the tokens that the step before chose, where rows refer to them; and writes down those of this step.
std::vector<SampledToken> choose(ThreadPool& pool, Rows logits, const StepCall& call, const RankTeam::Chosen& chosen) {
  std::vector<SamplingRow> rows(call.rows.begin(), call.rows.end());
  for (SamplingRow& row : rows)
    if (row.newest_id != kNoToken && is_future(row.newest_id))
      row.newest_id = chosen.before[static_cast<size_t>(state_slot_of(row.newest_id))];
  std::vector<SampledToken> sampled = sample(pool, logits, rows);
  const std::vector<int64_t>& logit_rows = call.step->logit_rows;
  for (const StepSequence& sequence : call.step->sequences) {
    const int64_t last_row = sequence.row_begin + sequence.row_count - 1;
    const auto found = std::lower_bound(logit_rows.begin(), logit_rows.end(), last_row);
    if (found == logit_rows.end() || *found != last_row) continue;
    const auto index = static_cast<size_t>(found - logit_rows.begin());
    if (rows[index].params) chosen.now[static_cast<size_t>(sequence.state_slot)] = sampled[index].id;
  }
  return sampled;
}

}  // namespace

Result<HostTeam> HostTeam::open(std::shared_ptr<comm::World> world) {
  HostTeam hosts;
  hosts.world_ = std::move(world);
  if (hosts.world_->nodes().size() > 1) {
    PLAIT_ASSIGN_OR_RETURN(HostChannel orders, HostChannel::open(*hosts.world_, "hosts"));
    PLAIT_ASSIGN_OR_RETURN(HostChannel answers, HostChannel::open(*hosts.world_, "hosts, answers"));
    hosts.channels_.emplace(std::move(orders), std::move(answers));
  }
  return hosts;
}

Result<int64_t> HostTeam::agree_on_start(const Result<int64_t>& own_pages) {
  if (!channels_) return own_pages;
  HostChannel& channel = channels_->orders;
  StartReport own;
  if (own_pages.has_error()) {
    own.failure = own_pages.error();
  } else {
    own.kv_pages = *own_pages;
  }
  StartReport verdict;
  if (leads()) {
    PLAIT_ASSIGN_OR_RETURN(verdict, merge_reports(std::move(own), channel));
    for (int host = 1; host < channel.hosts(); ++host)
      PLAIT_RETURN_IF_ERROR(channel.send(kVerdictName, encode(verdict), host));
  } else {
    PLAIT_RETURN_IF_ERROR(channel.send(kReportName, encode(own), 0));
    PLAIT_ASSIGN_OR_RETURN(const std::string bytes, channel.receive(kVerdictName, 0));
    PLAIT_ASSIGN_OR_RETURN(verdict, decode_start_report(bytes));
  }
  // In this host's own words, unless it only stopped because of another one.
  const bool follows_from_another = own_pages.has_error() && own_pages.error().kind == ErrorKind::kCancelled;
  if (own_pages.has_error() && !(follows_from_another && verdict.failure)) return own_pages;
  if (verdict.failure) return *verdict.failure;
  return verdict.kv_pages;
}

// The failure that others follow from, if there is one; else that of the first host that has one.
Result<StartReport> HostTeam::merge_reports(StartReport own, HostChannel& channel) {
  const auto is_cause = [](const StartReport& report) {
    return report.failure && report.failure->kind != ErrorKind::kCancelled;
  };
  const auto name_host = [&](int host, std::optional<Error>& failure) {
    const std::string& address = world_->nodes()[static_cast<size_t>(host)].host;
    if (failure) failure = std::move(*failure).within(fmt::format("host {} ({})", host, address));
  };
  StartReport all = std::move(own);
  name_host(0, all.failure);
  for (int host = 1; host < channel.hosts(); ++host) {
    PLAIT_ASSIGN_OR_RETURN(const std::string bytes, channel.receive(kReportName, host));
    PLAIT_ASSIGN_OR_RETURN(StartReport report, decode_start_report(bytes));
    name_host(host, report.failure);
    if (report.failure && (!all.failure || (is_cause(report) && !is_cause(all))))
      all.failure = std::move(report.failure);
    all.kv_pages = std::min(all.kv_pages, report.kv_pages);
  }
  return all;
}

int HostTeam::host_of_logits(int dp) const {
  return world_->node_of(team_->logits_rank(dp));
}

int HostTeam::most_steps_under_way() const {
  if (!team_->runs_ahead()) return 1;
  return std::max(2, std::min(team_->topology().config().pp_size, RankTeam::kMostStepsUnderWay));
}

void HostTeam::launch_here(Launch& launch) {
  launch.sampled.resize(launch.calls.size());
  launch.expert_slots = clear_experts(launch.calls);
  std::vector<const Step*> steps;
  for (const StepCall& call : launch.calls) steps.push_back(call.step);
  team_->launch(steps, [&launch](int dp, ThreadPool& pool, Rows logits, const RankTeam::Chosen& chosen) {
    const auto index = static_cast<size_t>(dp);
    launch.sampled[index] = choose(pool, logits, launch.calls[index], chosen);
  });
}

Status HostTeam::launch(std::span<const StepCall> of_dp_ranks) {
  if (channels_) {
    HostOrder order;
    for (const StepCall& call : of_dp_ranks) order.of_dp_ranks.push_back(*call.step);
    for (int host = 1; host < channels_->orders.hosts(); ++host) {
      order.rows.assign(of_dp_ranks.size(), {});
      for (size_t dp = 0; dp < of_dp_ranks.size(); ++dp) {
        if (host_of_logits(static_cast<int>(dp)) != host) continue;
        for (const SamplingRow& row : of_dp_ranks[dp].rows) order.rows[dp].push_back(OwnedSamplingRow::of(row));
      }
      PLAIT_RETURN_IF_ERROR(channels_->orders.send(kOrderName, encode(order), host));
    }
  }
  Launch& launch = *launches_.emplace_back(std::make_unique<Launch>());
  launch.calls.assign(of_dp_ranks.begin(), of_dp_ranks.end());
  launch_here(launch);
  return {};
}

Result<SampledRows> HostTeam::collect() {
  const std::unique_ptr<Launch> oldest = std::move(launches_.front());
  launches_.pop_front();
  PLAIT_RETURN_IF_ERROR(team_->collect());
  if (channels_) PLAIT_RETURN_IF_ERROR(finish_on_others(*oldest));
  return std::move(oldest->sampled);
}

// What the other hosts chose.
Status HostTeam::finish_on_others(Launch& launch) {
  for (size_t dp = 0; dp < launch.calls.size(); ++dp) {
    const int host = host_of_logits(static_cast<int>(dp));
    if (host == 0 || launch.calls[dp].rows.empty()) continue;
    PLAIT_ASSIGN_OR_RETURN(const std::string bytes, channels_->answers.receive(kTokensName, host));
    PLAIT_ASSIGN_OR_RETURN(SampledRows theirs, decode_sampled(bytes));
    if (theirs.size() != 1 || theirs.front().size() != launch.calls[dp].rows.size())
      return corrupt(fmt::format("host {} chose tokens for other rows than it was asked for", host));
    launch.sampled[dp] = std::move(theirs.front());
  }
  return receive_experts(launch.expert_slots);
}

// Rows of this step, of each data-parallel rank.
std::vector<std::vector<int64_t>> HostTeam::clear_experts(std::span<const StepCall> of_dp_ranks) {
  std::vector<std::vector<int64_t>> slots;
  if (!gathers_experts()) return slots;
  for (size_t dp = 0; dp < of_dp_ranks.size(); ++dp) {
    RoutedExpertPool& pool = *team_->routed_experts(static_cast<int>(dp));
    pool.clear(slots.emplace_back(kv_slots(*of_dp_ranks[dp].step, pool.page_tokens())));
  }
  return slots;
}

Status HostTeam::send_experts(const std::vector<std::vector<int64_t>>& slots) {
  if (!gathers_experts()) return {};
  std::string rows;
  for (size_t dp = 0; dp < slots.size(); ++dp) team_->routed_experts(static_cast<int>(dp))->read_slots(slots[dp], rows);
  return channels_->answers.send(kExpertsName, rows, 0);
}

Status HostTeam::receive_experts(const std::vector<std::vector<int64_t>>& slots) {
  if (!gathers_experts()) return {};
  const auto row_bytes = static_cast<size_t>(team_->routed_experts(0)->shape().row_bytes());
  size_t expected = 0;
  for (const auto& of_dp : slots) expected += of_dp.size() * row_bytes;
  for (int host = 1; host < channels_->answers.hosts(); ++host) {
    PLAIT_ASSIGN_OR_RETURN(const std::string bytes, channels_->answers.receive(kExpertsName, host));
    if (bytes.size() != expected)
      return corrupt(fmt::format("host {} sent {} bytes of routed experts, not {}", host, bytes.size(), expected));
    std::string_view rest = bytes;
    for (size_t dp = 0; dp < slots.size(); ++dp) {
      team_->routed_experts(static_cast<int>(dp))->merge(slots[dp], rest.substr(0, slots[dp].size() * row_bytes));
      rest.remove_prefix(slots[dp].size() * row_bytes);
    }
  }
  return {};
}

Status HostTeam::send_to_all(const HostOrder& order) {
  if (!channels_) return {};
  for (int host = 1; host < channels_->orders.hosts(); ++host)
    PLAIT_RETURN_IF_ERROR(channels_->orders.send(kOrderName, encode(order), host));
  return {};
}

Status HostTeam::begin_on_others(StartPhase phase) {
  return send_to_all({.kind = HostOrder::Kind::kPhase, .phase = phase});
}

Status HostTeam::agree_on_ready() {
  if (!channels_) return {};
  PLAIT_RETURN_IF_ERROR(send_to_all({.kind = HostOrder::Kind::kReport}));
  PLAIT_ASSIGN_OR_RETURN(const StartReport all, merge_reports({}, channels_->answers));
  if (all.failure) return *all.failure;
  return {};
}

Status HostTeam::arm_deadlines(std::chrono::milliseconds limit) {
  PLAIT_RETURN_IF_ERROR(send_to_all({.kind = HostOrder::Kind::kArmDeadlines}));
  team_->world().set_deadline(limit);
  return {};
}

Status HostTeam::end() {
  return send_to_all({.kind = HostOrder::Kind::kEnd});
}

// Bounded, since steps are answered in their order and a rank may have ended one that was not answered yet.
class HostTeam::LaunchQueue {
 public:
  // Waits for room. False: nobody answers any more.
  bool wait_for_room() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return abandoned_ || std::ssize(launches_) < RankTeam::kMostStepsUnderWay; });
    return !abandoned_;
  }
  void push(std::unique_ptr<Launch> launch) {
    const std::lock_guard lock(mutex_);
    launches_.push_back(std::move(launch));
    changed_.notify_all();
  }
  // The oldest, which stays in the queue until pop; null after close when there is none.
  const Launch* front() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return closed_ || !launches_.empty(); });
    return launches_.empty() ? nullptr : launches_.front().get();
  }
  void pop() {
    const std::lock_guard lock(mutex_);
    launches_.pop_front();
    changed_.notify_all();
  }
  void close() { set(closed_); }       // no more come
  void abandon() { set(abandoned_); }  // no more are answered

 private:
  void set(bool& flag) {
    const std::lock_guard lock(mutex_);
    flag = true;
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::unique_ptr<Launch>> launches_;
  bool closed_ = false, abandoned_ = false;
};

Status HostTeam::follow(const Following& following) {
  PLAIT_ASSERT(!leads(), "the first host leads");
  channels_->orders.wait_for_ever();
  followed_ = std::make_shared<LaunchQueue>();
  Status answered;
  std::thread answering([&] {
    answered = answer_steps();
    followed_->abandon();
  });
  Status followed = follow_orders(following);
  // Nobody else knows yet that this host ends.
  if (followed.has_error()) world_->cancel(followed.error().message, team_->first_rank());
  followed_->close();
  answering.join();
  return followed.has_error() ? followed : answered;
}

Status HostTeam::follow_orders(const Following& following) {
  StartReport report;
  while (true) {
    PLAIT_ASSIGN_OR_RETURN(const std::string bytes, channels_->orders.receive(kOrderName, 0));
    PLAIT_ASSIGN_OR_RETURN(HostOrder order, decode_order(bytes));
    switch (order.kind) {
      case HostOrder::Kind::kStep:
        if (!followed_->wait_for_room()) return {};
        PLAIT_RETURN_IF_ERROR(follow_step(std::move(order)));
        break;
      case HostOrder::Kind::kPhase:
        if (Status begun = following.begin(order.phase); begun.has_error() && !report.failure)
          report.failure = std::move(begun).error();
        break;
      case HostOrder::Kind::kReport: {
        if (!followed_->wait_for_room()) return {};
        auto launch = std::make_unique<Launch>();
        launch->report = report;
        followed_->push(std::move(launch));
        break;
      }
      case HostOrder::Kind::kArmDeadlines:
        world_->set_deadline(following.limit_when_armed);
        following.ready();
        break;
      case HostOrder::Kind::kEnd:
        return {};
    }
  }
}

Status HostTeam::follow_step(HostOrder order) {
  const auto dp_ranks = static_cast<size_t>(team_->dp_ranks());
  if (order.of_dp_ranks.size() != dp_ranks || order.rows.size() != dp_ranks)
    return corrupt(fmt::format("the first host sent a step for {} data-parallel ranks, not {}",
                               order.of_dp_ranks.size(), dp_ranks));
  auto launch = std::make_unique<Launch>();
  launch->order = std::move(order);
  launch->rows.resize(dp_ranks);
  for (size_t dp = 0; dp < dp_ranks; ++dp) {
    for (const OwnedSamplingRow& row : launch->order.rows[dp]) launch->rows[dp].push_back(row.view());
    launch->calls.push_back({&launch->order.of_dp_ranks[dp], launch->rows[dp]});
  }
  launch_here(*launch);
  followed_->push(std::move(launch));
  return {};
}

Status HostTeam::answer_steps() {
  while (const Launch* oldest = followed_->front()) {
    if (oldest->report) {
      PLAIT_RETURN_IF_ERROR(channels_->answers.send(kReportName, encode(*oldest->report), 0));
    } else {
      PLAIT_RETURN_IF_ERROR(team_->collect());
      PLAIT_RETURN_IF_ERROR(answer(*oldest));
      followed_steps_->fetch_add(1, std::memory_order_relaxed);
    }
    followed_->pop();
  }
  return {};
}

Status HostTeam::answer(const Launch& launch) {
  for (size_t dp = 0; dp < launch.calls.size(); ++dp)
    if (!launch.calls[dp].rows.empty())
      PLAIT_RETURN_IF_ERROR(channels_->answers.send(kTokensName, encode(SampledRows{launch.sampled[dp]}), 0));
  return send_experts(launch.expert_slots);
}

}  // namespace plait
