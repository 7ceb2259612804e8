#include "server/front_end.h"

#include <algorithm>

#include "base/log.h"
#include "base/thread_pool.h"
#include "engine/available_memory.h"
#include "engine/replicas.h"
#include "server/sampling_fields.h"

namespace plait {
namespace {

constexpr int64_t kWarmUpPromptTokens = 4;
constexpr int64_t kWarmUpTokens = 8;
constexpr std::chrono::milliseconds kWarmUpTimeout{600'000};
constexpr std::chrono::milliseconds kDrainPoll{20};
constexpr const char* kAborted = "Aborted by /abort_request.";

// A request of the server itself: any output is an answer.
class Probe : public OutputReceiver {
 public:
  Probe(EventLoop& loop, std::function<void(bool)> done) : timer_(loop), done_(std::move(done)) {}

  void arm(std::chrono::milliseconds timeout) {
    timer_.set(timeout, [this] { finish(false); });
  }
  void on_output(size_t, RequestOutput&& output) override {
    const bool failed = output.finish && output.finish->kind == FinishKind::kAbort;
    if (failed || output.finish || !output.tokens.empty()) finish(!failed);
  }

 private:
  void finish(bool answered) {
    timer_.cancel();
    if (const auto done = std::exchange(done_, nullptr)) done(answered);
  }

  EventLoop::Timer timer_;
  std::function<void(bool)> done_;
};

RequestOutput aborted(RequestId id, ErrorKind kind, const std::string& message) {
  RequestOutput output{.id = id};
  output.finish = Finish{.kind = FinishKind::kAbort, .error = kind, .message = message};
  return output;
}

}  // namespace

FrontEnd::FrontEnd(EventLoop& loop, const ServeOptions& options, ApiContext& context, Events events)
    : loop_(loop),
      options_(options),
      context_(context),
      events_(std::move(events)),
      metrics_(context.served_model_name),
      replica_options_(options),
      drain_timer_(loop) {
  context_.replicas = options.engine.parallel.replicas();
  replica_options_.engine = options_of_replica(options.engine, available_memory_bytes(), usable_cores());
  add_replicas();
}

void FrontEnd::add_replicas() {
  for (int number = 0; number < context_.replicas; ++number) {
    const auto known_as = context_.replicas > 1 ? std::optional(number) : std::nullopt;
    const auto place = static_cast<size_t>(number);
    replicas_.push_back(std::make_unique<Replica>(
        loop_, replica_options_, known_as,
        Replica::Events{.started = [this, place](const EngineInfo& info) { on_started(place, info); },
                        .outputs =
                            [this](std::vector<RequestOutput>&& outputs) {
                              for (RequestOutput& output : outputs) deliver(std::move(output));
                            },
                        .died = [this](const SchedulerLoad& last) { metrics_.engine_died(last); },
                        .gave_up = [this, place](const Error& why) { on_gave_up(*replicas_[place], why.message); }}));
  }
}

void FrontEnd::start() {
  for (const auto& replica : replicas_) {
    if (!ended_) replica->start();
  }
}

size_t FrontEnd::ready_replicas() const {
  return static_cast<size_t>(std::ranges::count_if(replicas_, [](const auto& replica) { return replica->ready(); }));
}

const EngineSupervisor& FrontEnd::supervisor() const {
  const auto waited_for = std::ranges::find_if(replicas_, [](const auto& replica) { return !replica->ready(); });
  return (waited_for == replicas_.end() ? replicas_.front() : *waited_for)->supervisor();
}

size_t FrontEnd::unfinished() const {
  size_t count = 0;
  for (const auto& replica : replicas_) count += replica->unfinished();
  return count;
}

// ---- requests

std::optional<ApiError> FrontEnd::refusal() const {
  if (draining_) return not_ready("The server is shutting down.");
  if (!serving_) return not_ready(fmt::format("The server is starting: {}.", supervisor().activity()));
  return std::nullopt;
}

// A replica for each sequence, as if they came one after the other; nothing if one of them finds no room.
std::optional<std::vector<size_t>> FrontEnd::choose_places(
    const std::vector<std::unique_ptr<ClientSequence>>& sequences) {
  std::vector<ReplicaLoad> loads;
  for (const auto& replica : replicas_) loads.push_back(replica->load());
  std::vector<size_t> places;
  size_t turn = turn_;
  for (const auto& sequence : sequences) {
    std::optional<size_t> place = sequence->request().replica;
    if (place && loads[*place].room < 1) return std::nullopt;
    if (!place) {
      place = choose_replica(options_.load_balance, loads, turn);
      if (!place) return std::nullopt;
      turn = (*place + 1) % loads.size();
    }
    ReplicaLoad& load = loads[*place];
    load.requests += 1;
    load.tokens += static_cast<int64_t>(sequence->prompt_tokens());
    load.room -= 1;
    places.push_back(*place);
  }
  turn_ = turn;
  return places;
}

ApiStatus FrontEnd::check_rids(const std::vector<std::unique_ptr<ClientSequence>>& sequences) const {
  std::vector<std::string> new_rids;
  for (const auto& sequence : sequences) {
    const std::string& rid = sequence->request().rid;
    if (rid.empty()) continue;
    const bool under_way = rids_.contains(rid) || rids_.contains(sequence->request().group);
    if (under_way || std::find(new_rids.begin(), new_rids.end(), rid) != new_rids.end()) {
      return bad_request(fmt::format("A request with rid '{}' is already under way.", rid), "rid", "duplicate_rid");
    }
    new_rids.push_back(rid);
  }
  return {};
}

ApiStatus FrontEnd::submit(std::vector<std::unique_ptr<ClientSequence>>& sequences,
                           std::shared_ptr<OutputReceiver> receiver) {
  PLAIT_RETURN_IF_ERROR(check_rids(sequences));
  const auto places = choose_places(sequences);
  if (!places) {
    return overloaded(fmt::format("The queue is full: {} requests are under way. Try again later.", unfinished()));
  }
  for (size_t i = 0; i < sequences.size(); ++i) {
    ClientSequence& sequence = *sequences[i];
    sequence.accepted(next_id_++, fmt::format("{:016x}{:016x}", draw_seed(), draw_seed()));
    const Request& request = sequence.request().request;
    Replica& replica = *replicas_[(*places)[i]];
    const Route route{receiver, i, sequence.request().rid, sequence.request().group, &replica};
    rids_.emplace(route.rid, request.id);
    if (!route.group.empty()) rids_.emplace(route.group, request.id);
    routes_[request.id] = route;
    replica.add(request);
  }
  for (const auto& replica : replicas_) replica->go_on();
  return {};
}

void FrontEnd::forget(RequestId id) {
  const auto route = routes_.find(id);
  if (route == routes_.end()) return;
  forget_rid(route->second.rid, id);
  forget_rid(route->second.group, id);
  routes_.erase(route);
}

void FrontEnd::forget_rid(const std::string& rid, RequestId id) {
  const auto [begin, end] = rids_.equal_range(rid);
  const auto item = std::find_if(begin, end, [id](const auto& entry) { return entry.second == id; });
  if (item != end) rids_.erase(item);
}

void FrontEnd::abandon(RequestId id) {
  const auto route = routes_.find(id);
  if (route == routes_.end()) return;
  Replica& replica = *route->second.replica;
  forget(id);
  replica.withdraw(id);
  replica.go_on();
}

void FrontEnd::abort(const std::string& rid) {
  const auto [begin, end] = rids_.equal_range(rid);
  std::vector<RequestId> ids;
  for (auto item = begin; item != end; ++item) ids.push_back(item->second);
  fail(ids, ErrorKind::kCancelled, kAborted);
}

void FrontEnd::abort_all() {
  fail(ids_of(nullptr), ErrorKind::kCancelled, kAborted);
}

std::vector<RequestId> FrontEnd::ids_of(const Replica* replica) const {
  std::vector<RequestId> ids;
  for (const auto& [id, route] : routes_) {
    if (replica == nullptr || route.replica == replica) ids.push_back(id);
  }
  return ids;
}

void FrontEnd::fail(std::span<const RequestId> ids, ErrorKind kind, const std::string& message) {
  for (const RequestId id : ids) {
    const auto route = routes_.find(id);
    if (route == routes_.end()) continue;
    route->second.replica->withdraw(id);
    deliver(aborted(id, kind, message));
  }
  for (const auto& replica : replicas_) replica->go_on();
}

void FrontEnd::deliver(RequestOutput&& output) {
  const auto route = routes_.find(output.id);
  if (route == routes_.end()) return;
  const std::shared_ptr<OutputReceiver> receiver = route->second.receiver;
  const size_t index = route->second.index;
  if (output.finish) forget(output.id);
  receiver->on_output(index, std::move(output));
}

// ---- the engines' lives

void FrontEnd::on_started(size_t number, const EngineInfo& info) {
  const int64_t longest = std::min(info.context_tokens, info.kv_tokens);
  context_.context_tokens = context_.context_tokens == 0 ? longest : std::min(context_.context_tokens, longest);
  probe(
      kWarmUpPromptTokens, kWarmUpTokens, kWarmUpTimeout, [this](bool answered) { on_warmed_up(answered); }, number);
}

void FrontEnd::on_warmed_up(bool answered) {
  if (draining_) return;
  if (!answered) {
    log::error("the server ends: the warm-up request was not answered");
    status_ = 1;
    end();
    return;
  }
  if (++warmed_up_ < replicas_.size()) return;
  serving_ = true;
  events_.ready();
}

// What keeps failing is not hidden behind the other replicas: they finish what they have, and the server ends.
void FrontEnd::on_gave_up(const Replica& replica, const std::string& why) {
  log::error("the server ends: {}", why);
  status_ = 1;
  const size_t lost = replica.unfinished();
  fail(ids_of(&replica), ErrorKind::kInternal, "The engine failed and could not be restarted.");
  if (lost > 0) log::error("{} requests were answered with an error", lost);
  if (serving_) {
    begin_drain();
  } else {
    end();
  }
}

void FrontEnd::end() {
  if (std::exchange(ended_, true)) return;
  draining_ = true;
  const auto running = std::make_shared<size_t>(replicas_.size());
  for (const auto& replica : replicas_) {
    replica->stop([this, running] {
      if (--*running == 0) events_.ended(status_);
    });
  }
}

void FrontEnd::drain(std::function<size_t()> unanswered) {
  if (draining_) return;
  unanswered_ = std::move(unanswered);
  begin_drain();
}

void FrontEnd::begin_drain() {
  if (std::exchange(draining_, true)) return;
  drain_until_ = std::chrono::steady_clock::now() + options_.drain_timeout;
  if (unfinished() > 0) {
    log::info("{} requests are under way and may finish within {} s", unfinished(), options_.drain_timeout.count());
  }
  check_drained();
}

void FrontEnd::check_drained() {
  const bool late = std::chrono::steady_clock::now() >= drain_until_;
  if (late && unfinished() > 0) {
    log::warning("{} requests did not finish in time and are aborted", unfinished());
    fail(ids_of(nullptr), ErrorKind::kUnavailable,
         "The server is shutting down; the request could not be finished in time.");
  }
  if (late || (unfinished() == 0 && unanswered_() == 0)) {
    end();
    return;
  }
  drain_timer_.set(kDrainPoll, [this] { check_drained(); });
}

std::string FrontEnd::expose_metrics() {
  std::vector<const SchedulerLoad*> loads;
  for (const auto& replica : replicas_) loads.push_back(replica->ready() ? &replica->supervisor().load() : nullptr);
  return metrics_.expose(unfinished(), loads);
}

// ---- requests of the server itself

void FrontEnd::probe(int64_t prompt_tokens, int64_t new_tokens, std::chrono::milliseconds timeout,
                     std::function<void(bool)> done, std::optional<size_t> replica) {
  const int64_t most = std::max<int64_t>(1, context_.context_tokens);
  SequenceRequest sequence{.rid = fmt::format("HEALTH_CHECK_{:016x}", draw_seed()), .replica = replica};
  Request& request = sequence.request;
  for (int64_t i = 0; i < std::min(prompt_tokens, std::max<int64_t>(1, most - new_tokens)); ++i) {
    request.prompt_ids.push_back(static_cast<int32_t>(i % context_.config.vocab_size));
  }
  request.sampling.temperature = 0;
  request.sampling.ignore_eos = true;
  request.sampling.max_new_tokens =
      std::max<int64_t>(1, std::min(new_tokens, most - static_cast<int64_t>(request.prompt_ids.size())));
  request.time_limit = timeout;

  std::vector<std::unique_ptr<ClientSequence>> sequences;
  sequences.push_back(std::make_unique<ClientSequence>(std::move(sequence), nullptr));
  const auto id = std::make_shared<RequestId>(0);
  auto receiver = std::make_shared<Probe>(loop_, [this, id, done = std::move(done)](bool answered) {
    abandon(*id);
    done(answered);
  });
  if (submit(sequences, receiver).has_error()) {
    loop_.post([receiver] { receiver->on_output(0, aborted(0, ErrorKind::kExhausted, "")); });
    return;
  }
  *id = sequences.front()->id();
  receiver->arm(timeout);
}

void FrontEnd::flush_cache(std::function<void(std::optional<bool>)> done) {
  const size_t ready = ready_replicas();
  if (ready == 0) {
    done(std::nullopt);
    return;
  }
  if (unfinished() > 0) {
    done(false);
    return;
  }
  struct Answers {
    size_t missing = 0;
    bool complete = true, flushed = true;
  };
  const auto answers = std::make_shared<Answers>(Answers{.missing = ready});
  for (const auto& replica : replicas_) {
    if (!replica->ready()) continue;
    replica->flush_cache([answers, done](std::optional<bool> flushed) {
      answers->complete &= flushed.has_value();
      answers->flushed &= flushed.value_or(false);
      if (--answers->missing == 0) done(answers->complete ? std::optional(answers->flushed) : std::nullopt);
    });
  }
}

}  // namespace plait
