#include "engine/host_team.h"

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
  if (hosts.world_ && hosts.world_->nodes().size() > 1) {
    PLAIT_ASSIGN_OR_RETURN(HostChannel channel, HostChannel::open(*hosts.world_));
    hosts.channel_.emplace(std::move(channel));
  }
  return hosts;
}

Result<int64_t> HostTeam::agree_on_start(const Result<int64_t>& own_pages) {
  if (!channel_) return own_pages;
  StartReport own;
  if (own_pages.has_error()) {
    own.failure = own_pages.error();
  } else {
    own.kv_pages = *own_pages;
  }
  StartReport verdict;
  if (leads()) {
    PLAIT_ASSIGN_OR_RETURN(verdict, merge_reports(std::move(own)));
    for (int host = 1; host < channel_->hosts(); ++host)
      PLAIT_RETURN_IF_ERROR(channel_->send(kVerdictName, encode(verdict), host));
  } else {
    PLAIT_RETURN_IF_ERROR(channel_->send(kReportName, encode(own), 0));
    PLAIT_ASSIGN_OR_RETURN(const std::string bytes, channel_->receive(kVerdictName, 0));
    PLAIT_ASSIGN_OR_RETURN(verdict, decode_start_report(bytes));
  }
  if (own_pages.has_error()) return own_pages;  // in this host's own words
  if (verdict.failure) return *verdict.failure;
  return verdict.kv_pages;
}

Result<StartReport> HostTeam::merge_reports(StartReport own) {
  const auto name_host = [&](int host, std::optional<Error>& failure) {
    const std::string& address = world_->nodes()[static_cast<size_t>(host)].host;
    if (failure) failure = std::move(*failure).within(fmt::format("host {} ({})", host, address));
  };
  StartReport all = std::move(own);
  name_host(0, all.failure);
  for (int host = 1; host < channel_->hosts(); ++host) {
    PLAIT_ASSIGN_OR_RETURN(const std::string bytes, channel_->receive(kReportName, host));
    PLAIT_ASSIGN_OR_RETURN(StartReport report, decode_start_report(bytes));
    name_host(host, report.failure);
    if (report.failure && !all.failure) all.failure = std::move(report.failure);
    all.kv_pages = std::min(all.kv_pages, report.kv_pages);
  }
  return all;
}

int HostTeam::host_of_logits(int dp) const {
  return world_->node_of(team_->logits_rank(dp));
}

int HostTeam::most_steps_under_way() const {
  if (channel_ || !team_->runs_ahead()) return 1;
  return std::max(2, std::min(team_->topology().config().pp_size, RankTeam::kMostStepsUnderWay));
}

void HostTeam::launch_here(std::span<const StepCall> of_dp_ranks) {
  Launch& launch = *launches_.emplace_back(std::make_unique<Launch>());
  launch.calls.assign(of_dp_ranks.begin(), of_dp_ranks.end());
  launch.sampled.resize(of_dp_ranks.size());
  launch.expert_slots = clear_experts(of_dp_ranks);
  std::vector<const Step*> steps;
  for (const StepCall& call : of_dp_ranks) steps.push_back(call.step);
  team_->launch(steps, [&launch](int dp, ThreadPool& pool, Rows logits, const RankTeam::Chosen& chosen) {
    const auto index = static_cast<size_t>(dp);
    launch.sampled[index] = choose(pool, logits, launch.calls[index], chosen);
  });
}

Status HostTeam::launch(std::span<const StepCall> of_dp_ranks) {
  if (channel_) {
    HostOrder order;
    for (const StepCall& call : of_dp_ranks) order.of_dp_ranks.push_back(*call.step);
    for (int host = 1; host < channel_->hosts(); ++host) {
      order.rows.assign(of_dp_ranks.size(), {});
      for (size_t dp = 0; dp < of_dp_ranks.size(); ++dp) {
        if (host_of_logits(static_cast<int>(dp)) != host) continue;
        for (const SamplingRow& row : of_dp_ranks[dp].rows) order.rows[dp].push_back(OwnedSamplingRow::of(row));
      }
      PLAIT_RETURN_IF_ERROR(channel_->send(kOrderName, encode(order), host));
    }
  }
  launch_here(of_dp_ranks);
  return {};
}

Result<SampledRows> HostTeam::collect() {
  const std::unique_ptr<Launch> oldest = std::move(launches_.front());
  launches_.pop_front();
  PLAIT_RETURN_IF_ERROR(team_->collect());
  if (channel_) PLAIT_RETURN_IF_ERROR(finish_on_others(*oldest));
  return std::move(oldest->sampled);
}

// What the other hosts chose.
Status HostTeam::finish_on_others(Launch& launch) {
  for (size_t dp = 0; dp < launch.calls.size(); ++dp) {
    const int host = host_of_logits(static_cast<int>(dp));
    if (host == 0 || launch.calls[dp].rows.empty()) continue;
    PLAIT_ASSIGN_OR_RETURN(const std::string bytes, channel_->receive(kTokensName, host));
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
  return channel_->send(kExpertsName, rows, 0);
}

Status HostTeam::receive_experts(const std::vector<std::vector<int64_t>>& slots) {
  if (!gathers_experts()) return {};
  const auto row_bytes = static_cast<size_t>(team_->routed_experts(0)->shape().row_bytes());
  size_t expected = 0;
  for (const auto& of_dp : slots) expected += of_dp.size() * row_bytes;
  for (int host = 1; host < channel_->hosts(); ++host) {
    PLAIT_ASSIGN_OR_RETURN(const std::string bytes, channel_->receive(kExpertsName, host));
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
  if (!channel_) return {};
  for (int host = 1; host < channel_->hosts(); ++host)
    PLAIT_RETURN_IF_ERROR(channel_->send(kOrderName, encode(order), host));
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

Status HostTeam::follow(std::chrono::milliseconds limit_when_armed, const std::function<void()>& ready) {
  PLAIT_ASSERT(!leads(), "the first host leads");
  channel_->wait_for_ever();
  while (true) {
    PLAIT_ASSIGN_OR_RETURN(const std::string bytes, channel_->receive(kOrderName, 0));
    PLAIT_ASSIGN_OR_RETURN(const HostOrder order, decode_order(bytes));
    switch (order.kind) {
      case HostOrder::Kind::kStep:
        PLAIT_RETURN_IF_ERROR(follow_step(order));
        followed_steps_->fetch_add(1, std::memory_order_relaxed);
        break;
      case HostOrder::Kind::kArmDeadlines:
        world_->set_deadline(limit_when_armed);
        ready();
        break;
      case HostOrder::Kind::kEnd:
        return {};
    }
  }
}

Status HostTeam::follow_step(const HostOrder& order) {
  const auto dp_ranks = static_cast<size_t>(team_->dp_ranks());
  if (order.of_dp_ranks.size() != dp_ranks || order.rows.size() != dp_ranks)
    return corrupt(fmt::format("the first host sent a step for {} data-parallel ranks, not {}",
                               order.of_dp_ranks.size(), dp_ranks));
  std::vector<std::vector<SamplingRow>> rows(dp_ranks);
  std::vector<StepCall> calls;
  for (size_t dp = 0; dp < dp_ranks; ++dp) {
    for (const OwnedSamplingRow& row : order.rows[dp]) rows[dp].push_back(row.view());
    calls.push_back({&order.of_dp_ranks[dp], rows[dp]});
  }
  launch_here(calls);
  const std::unique_ptr<Launch> launch = std::move(launches_.front());
  launches_.pop_front();
  PLAIT_RETURN_IF_ERROR(team_->collect());
  for (size_t dp = 0; dp < dp_ranks; ++dp)
    if (!rows[dp].empty())
      PLAIT_RETURN_IF_ERROR(channel_->send(kTokensName, encode(SampledRows{launch->sampled[dp]}), 0));
  return send_experts(launch->expert_slots);
}

}  // namespace plait
