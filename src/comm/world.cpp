#include "comm/world.h"

#include <algorithm>
#include <csignal>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/assert.h"
#include "base/thread_pool.h"
#include "base/units.h"
#include "comm/control_link.h"
#include "comm/gloo_link.h"
#include "comm/group.h"

namespace plait::comm {
namespace {

constexpr size_t kMaxGroupSize = 512;                   // members have nine bits in a slot
constexpr std::chrono::milliseconds kAnswerLimit(300);  // of a process that is alive

}  // namespace

World::World(std::vector<Node> nodes, int this_node) : nodes_(std::move(nodes)), this_node_(this_node) {
  for (const Node& node : nodes_) size_ += node.ranks;
  // One core is left for what moves messages between processes.
  const int threads = nodes_[static_cast<size_t>(this_node_)].ranks + (nodes_.size() > 1 ? 1 : 0);
  cores_to_spare_ = threads <= usable_cores();
}

std::shared_ptr<World> World::local(int ranks) {
  PLAIT_ASSERT(ranks >= 1, "a world has at least one rank");
  return std::shared_ptr<World>(new World({Node{"", 0, ranks}}, 0));
}

Result<std::shared_ptr<World>> World::join(const RendezvousOptions& options) {
  if (options.nodes == 1) {
    if (options.node != 0 || options.ranks < 1)
      return invalid(fmt::format("--node-rank {} with {} ranks does not fit --nnodes 1", options.node, options.ranks));
    return local(options.ranks);
  }
  // Gloo writes to sockets without MSG_NOSIGNAL.
  std::signal(SIGPIPE, SIG_IGN);
  PLAIT_ASSIGN_OR_RETURN(Meeting meeting, meet(options));
  std::shared_ptr<World> world(new World(meeting.nodes, meeting.node));
  PLAIT_ASSIGN_OR_RETURN(auto link, make_gloo_link(meeting, world->cancellation_, options.limit));
  TickingLink* ticking = link.get();
  world->link_ = std::move(link);
  world->control_ = std::make_unique<ControlLink>(
      std::move(meeting), world->cancellation_, [ticking] { ticking->tick(); },
      [w = world.get()](uint32_t group, uint32_t call) { return w->late_members(group, call); });
  return world;
}

World::~World() {
  // What was sent is delivered before this process says goodbye.
  std::map<std::string, std::shared_ptr<Group>, std::less<>> groups;
  {
    std::lock_guard lock(mutex_);
    groups.swap(groups_);
  }
  groups.clear();
  if (control_) control_->leave();
}

int World::node_of(int rank) const {
  for (size_t node = 0; node < nodes_.size(); ++node)
    if (rank >= nodes_[node].first_rank && rank < nodes_[node].first_rank + nodes_[node].ranks)
      return static_cast<int>(node);
  return -1;
}

std::string World::describe_rank(int rank) const {
  if (nodes_.size() == 1) return fmt::format("rank {}", rank);
  const int node = node_of(rank);
  return fmt::format("rank {} (node {}, {})", rank, node, nodes_[static_cast<size_t>(node)].host);
}

Result<Communicator> World::communicator(std::string_view name, std::span<const int> ranks, int rank) {
  const auto wrong = [&](std::string_view what) {
    return invalid(fmt::format("group '{}' of ranks {}: {}", name, fmt::join(ranks, ","), what));
  };
  if (ranks.size() > kMaxGroupSize) return wrong(fmt::format("more than {} members", kMaxGroupSize));
  std::vector<int> sorted(ranks.begin(), ranks.end());
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) return wrong("a rank is listed twice");
  if (sorted.empty() || sorted.front() < 0 || sorted.back() >= size_)
    return wrong(fmt::format("the world has the ranks 0 to {}", size_ - 1));
  const auto place = std::find(ranks.begin(), ranks.end(), rank);
  if (place == ranks.end()) return wrong(fmt::format("rank {} is not one of them", rank));
  if (!is_local(rank)) return wrong(fmt::format("{} does not live here", describe_rank(rank)));

  std::lock_guard lock(mutex_);
  auto found = groups_.find(name);
  if (found == groups_.end()) {
    auto group = std::make_shared<Group>(*this, std::string(name), std::vector<int>(ranks.begin(), ranks.end()));
    for (const auto& [other_name, other] : groups_)
      if (other->slot_prefix() == group->slot_prefix())
        return wrong(fmt::format("its name has the same hash as '{}'; choose another name", other_name));
    found = groups_.emplace(name, std::move(group)).first;
  }
  if (!std::ranges::equal(found->second->ranks(), ranks))
    return wrong(fmt::format("another rank listed {}", fmt::join(found->second->ranks(), ",")));
  const int member = static_cast<int>(place - ranks.begin());
  if (!found->second->claim(member)) return wrong(fmt::format("rank {} has its communicator already", rank));
  return Communicator(found->second, found->second->seat_of(member));
}

std::vector<uint32_t> World::late_members(uint32_t slot_prefix, uint32_t call) {
  std::lock_guard lock(mutex_);
  for (const auto& [name, group] : groups_)
    if (group->slot_prefix() == slot_prefix) return group->late_members(call);
  return {};
}

std::optional<std::vector<uint32_t>> World::ask_late_members(int node, uint32_t slot_prefix, uint32_t call) {
  if (!control_) return std::nullopt;
  return control_->ask(node, slot_prefix, call, kAnswerLimit);
}

void World::set_note(std::string text) {
  if (control_) control_->note(std::move(text));
}

std::vector<NodeNote> World::notes() {
  return control_ ? control_->notes() : std::vector<NodeNote>();
}

void World::set_deadline(std::optional<std::chrono::milliseconds> deadline) {
  deadline_ms_.store(deadline ? std::max<int64_t>(deadline->count(), 1) : 0, std::memory_order_relaxed);
}

std::optional<std::chrono::milliseconds> World::deadline() const {
  const int64_t limit = deadline_ms_.load(std::memory_order_relaxed);
  if (limit == 0) return std::nullopt;
  return std::chrono::milliseconds(limit);
}

void World::cancel(std::string reason, int rank) {
  cancellation_.cancel({FailureKind::kCancelled, rank, rank < 0 ? -1 : node_of(rank), std::move(reason)});
}

std::vector<std::string> World::describe_activity() const {
  std::vector<std::string> lines;
  if (const auto why = failure()) lines.push_back("the ranks work no more: " + why->message);
  const std::lock_guard lock(mutex_);
  const Node& here = nodes_[static_cast<size_t>(this_node_)];
  for (int rank = here.first_rank; rank < here.first_rank + here.ranks; ++rank) describe_activity_of(rank, lines);
  return lines;
}

// A line for each call that it is in: its own thread is in one at most, and another one where hosts exchange orders.
void World::describe_activity_of(int rank, std::vector<std::string>& lines) const {
  const auto since = [](Clock::time_point then) {
    return format_seconds(std::chrono::duration<double>(Clock::now() - then).count());
  };
  int64_t step = kNoStep;
  bool in_call_of_step = false;
  std::optional<std::pair<OpenCall, const Group*>> last;
  for (const auto& [name, group] : groups_)
    for (const auto& seat : group->seats()) {
      if (group->ranks()[static_cast<size_t>(seat->rank)] != rank) continue;
      const bool in_call = seat->in_call.load(std::memory_order_acquire);
      const OpenCall call = seat->shown.load();
      step = std::max(step, call.step);
      if (in_call) {
        const std::vector<int> awaited = group->awaited_members(*seat, call);
        in_call_of_step |= call.step != kNoStep;
        const std::string rank_name = describe_rank(rank), place = group->describe_place(call);
        lines.push_back(awaited.empty() ? fmt::format("{} has been {} in {}, and waits for nobody", rank_name,
                                                      since(call.began), place)
                                        : fmt::format("{} has waited {} for {} in {}", rank_name, since(call.began),
                                                      group->describe_members(awaited), place));
      } else if (call.ever && (!last || call.began > last->first.began)) {
        last.emplace(call, group.get());
        last->first.step = kNoStep;  // whichever it was in
      }
    }
  if (in_call_of_step) return;
  lines.push_back(fmt::format("{} {}{}", describe_rank(rank),
                              step == kNoStep ? "has no step to do" : fmt::format("computes in step {}", step),
                              last ? fmt::format("; its last call began {} ago: {}", since(last->first.began),
                                                 last->second->describe_place(last->first))
                                   : ""));
}

std::optional<Failure> World::failure() const {
  if (!cancellation_.cancelled()) return std::nullopt;
  return cancellation_.failure();
}

}  // namespace plait::comm
