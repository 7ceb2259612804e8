#include "server/front_end.h"

#include "base/log.h"
#include "server/sampling_fields.h"

namespace plait {
namespace {

constexpr int64_t kWarmUpPromptTokens = 4;
constexpr int64_t kWarmUpTokens = 8;
constexpr std::chrono::milliseconds kWarmUpTimeout{600'000};
constexpr std::chrono::milliseconds kFlushTimeout{20'000};
constexpr std::chrono::milliseconds kDrainPoll{20};
constexpr std::chrono::milliseconds kDeadlineSweep{250};

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
      supervisor_(loop, options,
                  {.ready = [this](const EngineInfo& info) { on_ready(info); },
                   .outputs = [this](std::vector<RequestOutput>&& outputs) { on_outputs(std::move(outputs)); },
                   .flushed =
                       [this](const FlushedMessage& message) {
                         const auto waiting = flushes_.extract(message.ticket);
                         if (!waiting.empty()) waiting.mapped()(message.flushed);
                       },
                   .died = [this](const std::string&) { on_died(); },
                   .gave_up = [this](const Error& why) { on_gave_up(why.message); },
                   .ended = [] {}}),
      deadline_timer_(loop),
      drain_timer_(loop) {}

void FrontEnd::start() {
  supervisor_.start();
}

// ---- requests

std::optional<ApiError> FrontEnd::refusal() const {
  if (draining_) return not_ready("The server is shutting down.");
  if (!serving_) return not_ready(fmt::format("The server is starting: {}.", supervisor_.activity()));
  return std::nullopt;
}

// Counted from the ledger alone: what the engine last said about its queue is old as soon as a request was sent to it.
int64_t FrontEnd::room_in_queue() const {
  const int64_t most_queued = options_.scheduler.max_queued_requests;
  if (most_queued == 0) return std::numeric_limits<int64_t>::max();
  return options_.scheduler.max_running_requests + most_queued - static_cast<int64_t>(ledger_.size());
}

ApiStatus FrontEnd::submit(std::vector<std::unique_ptr<ClientSequence>>& sequences,
                           std::shared_ptr<OutputReceiver> receiver) {
  if (static_cast<int64_t>(sequences.size()) > room_in_queue()) {
    return overloaded(fmt::format("The queue is full: {} requests are under way. Try again later.", ledger_.size()));
  }
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

  const auto now = Ledger::Clock::now();
  for (size_t i = 0; i < sequences.size(); ++i) {
    ClientSequence& sequence = *sequences[i];
    sequence.accepted(next_id_++, fmt::format("{:016x}{:016x}", draw_seed(), draw_seed()));
    const Request& request = sequence.request().request;
    const Route route{receiver, i, sequence.request().rid, sequence.request().group};
    rids_.emplace(route.rid, request.id);
    if (!route.group.empty()) rids_.emplace(route.group, request.id);
    routes_[request.id] = route;
    ledger_.add(request, now);
  }
  go_on();
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
  if (!routes_.contains(id)) return;
  forget(id);
  ledger_.remove(id);
  supervisor_.link().send(AbortMessage{id});
  go_on();
}

void FrontEnd::abort(const std::string& rid) {
  const auto [begin, end] = rids_.equal_range(rid);
  std::vector<RequestId> ids;
  for (auto item = begin; item != end; ++item) ids.push_back(item->second);
  for (const RequestId id : ids) {
    supervisor_.link().send(AbortMessage{id});
    ledger_.remove(id);
    deliver(aborted(id, ErrorKind::kCancelled, "Aborted by /abort_request."));
  }
  go_on();
}

void FrontEnd::abort_all() {
  for (const auto& [id, route] : routes_) supervisor_.link().send(AbortMessage{id});
  fail_all(ErrorKind::kCancelled, "Aborted by /abort_request.");
}

void FrontEnd::fail_all(ErrorKind kind, const std::string& message) {
  std::vector<RequestId> ids;
  for (const auto& [id, route] : routes_) ids.push_back(id);
  for (const RequestId id : ids) {
    ledger_.remove(id);
    deliver(aborted(id, kind, message));
  }
  supervisor_.set_busy(ledger_.size() > 0);
}

void FrontEnd::deliver(RequestOutput&& output) {
  const auto route = routes_.find(output.id);
  if (route == routes_.end()) return;
  const std::shared_ptr<OutputReceiver> receiver = route->second.receiver;
  const size_t index = route->second.index;
  if (output.finish) forget(output.id);
  receiver->on_output(index, std::move(output));
}

void FrontEnd::deliver_all(std::vector<RequestOutput>&& outputs) {
  for (RequestOutput& output : outputs) deliver(std::move(output));
}

void FrontEnd::on_outputs(std::vector<RequestOutput>&& outputs) {
  for (RequestOutput& output : outputs) {
    if (ledger_.record(output)) deliver(std::move(output));
  }
  go_on();
}

// Gives the engine what it may have, or watches the time limits while there is none.
void FrontEnd::go_on() {
  if (supervisor_.phase() == EnginePhase::kReady) {
    for (const Request& request : ledger_.next(Ledger::Clock::now())) supervisor_.link().send(request);
  } else {
    sweep_deadlines();
  }
  supervisor_.set_busy(ledger_.size() > 0);
}

// ---- the engine's life

void FrontEnd::on_ready(const EngineInfo& info) {
  if (serving_) {
    if (ledger_.size() > 0) log::info("{} unfinished requests go on", ledger_.size());
    deliver_all(ledger_.expire(Ledger::Clock::now()));
    go_on();
    return;
  }
  context_.context_tokens = std::min(info.context_tokens, info.kv_tokens);
  probe(kWarmUpPromptTokens, kWarmUpTokens, kWarmUpTimeout, [this](bool answered) {
    if (ended_) return;
    if (!answered) {
      on_gave_up("the warm-up request was not answered");
      return;
    }
    serving_ = true;
    events_.ready();
  });
}

void FrontEnd::on_died() {
  metrics_.engine_died(supervisor_.load());
  auto flushes = std::exchange(flushes_, {});
  for (const auto& [ticket, done] : flushes) done(std::nullopt);
  deliver_all(ledger_.engine_died());
  go_on();
}

// Without an engine nobody else looks at the time limits.
void FrontEnd::sweep_deadlines() {
  if (supervisor_.phase() == EnginePhase::kReady || ledger_.size() == 0 || ended_) return;
  deliver_all(ledger_.expire(Ledger::Clock::now()));
  deadline_timer_.set(kDeadlineSweep, [this] { sweep_deadlines(); });
}

void FrontEnd::on_gave_up(const std::string& why) {
  log::error("the server ends: {}", why);
  const size_t lost = ledger_.size();
  fail_all(ErrorKind::kInternal, "The engine failed and could not be restarted.");
  if (lost > 0) log::error("{} requests were answered with an error", lost);
  end(1);
}

void FrontEnd::end(int status) {
  if (std::exchange(ended_, true)) return;
  draining_ = true;
  supervisor_.stop([this, status] { events_.ended(status); });
}

void FrontEnd::drain(std::function<size_t()> unanswered) {
  if (std::exchange(draining_, true)) return;
  unanswered_ = std::move(unanswered);
  drain_until_ = std::chrono::steady_clock::now() + options_.drain_timeout;
  if (ledger_.size() > 0) {
    log::info("{} requests are under way and may finish within {} s", ledger_.size(), options_.drain_timeout.count());
  }
  check_drained();
}

void FrontEnd::check_drained() {
  const bool late = std::chrono::steady_clock::now() >= drain_until_;
  if (late && ledger_.size() > 0) {
    log::warning("{} requests did not finish in time and are aborted", ledger_.size());
    fail_all(ErrorKind::kUnavailable, "The server is shutting down; the request could not be finished in time.");
  }
  if (late || (ledger_.size() == 0 && unanswered_() == 0)) {
    end(0);
    return;
  }
  drain_timer_.set(kDrainPoll, [this] { check_drained(); });
}

std::string FrontEnd::expose_metrics() {
  const bool engine = supervisor_.phase() == EnginePhase::kReady;
  return metrics_.expose(ledger_.size(), engine ? &supervisor_.load() : nullptr);
}

// ---- requests of the server itself

void FrontEnd::probe(int64_t prompt_tokens, int64_t new_tokens, std::chrono::milliseconds timeout,
                     std::function<void(bool)> done) {
  const int64_t most = std::max<int64_t>(1, context_.context_tokens);
  SequenceRequest sequence{.rid = fmt::format("HEALTH_CHECK_{:016x}", draw_seed())};
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
  if (supervisor_.phase() != EnginePhase::kReady) {
    done(std::nullopt);
    return;
  }
  if (ledger_.size() > 0) {
    done(false);
    return;
  }
  const uint64_t ticket = next_ticket_++;
  const auto timer = std::make_shared<EventLoop::Timer>(loop_);
  timer->set(kFlushTimeout, [this, ticket] {
    const auto waiting = flushes_.extract(ticket);
    if (!waiting.empty()) waiting.mapped()(std::nullopt);
  });
  flushes_.emplace(ticket, [timer, done = std::move(done)](std::optional<bool> flushed) {
    timer->cancel();
    done(flushed);
  });
  supervisor_.link().send(FlushCacheMessage{ticket});
}

}  // namespace plait
