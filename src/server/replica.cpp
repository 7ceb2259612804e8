#include "server/replica.h"

#include "base/log.h"

namespace plait {
namespace {

constexpr std::chrono::milliseconds kFlushTimeout{20'000};
constexpr std::chrono::milliseconds kDeadlineSweep{250};

}  // namespace

Replica::Replica(EventLoop& loop, const ServeOptions& options, std::optional<int> number, Events events)
    : loop_(loop),
      options_(options),
      events_(std::move(events)),
      supervisor_(loop, options, number,
                  {.ready = [this](const EngineInfo& info) { on_ready(info); },
                   .outputs = [this](std::vector<RequestOutput>&& outputs) { on_outputs(std::move(outputs)); },
                   .flushed =
                       [this](const FlushedMessage& message) {
                         const auto waiting = flushes_.extract(message.ticket);
                         if (!waiting.empty()) waiting.mapped()(message.flushed);
                       },
                   .died = [this](const std::string&) { on_died(); },
                   .gave_up = [this](const Error& why) { events_.gave_up(why); },
                   .ended = [] {}}),
      deadline_timer_(loop) {}

void Replica::withdraw(RequestId id) {
  ledger_.remove(id);
  supervisor_.link().send(AbortMessage{id});
}

void Replica::go_on() {
  if (ready()) {
    for (const Request& request : ledger_.next(Ledger::Clock::now())) supervisor_.link().send(request);
  } else {
    sweep_deadlines();
  }
  supervisor_.set_busy(ledger_.size() > 0);
}

// Counted from the ledger alone: what the engine last said about its queue is old as soon as a request was sent to it.
ReplicaLoad Replica::load() const {
  const SchedulerOptions& limits = options_.scheduler;
  ReplicaLoad load{.ready = ready(), .requests = static_cast<int64_t>(ledger_.size()), .tokens = ledger_.tokens()};
  const bool unlimited = limits.max_queued_requests == 0;
  load.room = unlimited ? std::numeric_limits<int64_t>::max()
                        : limits.max_running_requests + limits.max_queued_requests - load.requests;
  return load;
}

void Replica::on_ready(const EngineInfo& info) {
  if (!std::exchange(started_, true)) {
    events_.started(info);
    return;
  }
  if (ledger_.size() > 0) log::info("{} unfinished requests go on", ledger_.size());
  events_.outputs(ledger_.expire(Ledger::Clock::now()));
  go_on();
}

void Replica::on_outputs(std::vector<RequestOutput>&& outputs) {
  std::vector<RequestOutput> noted;
  noted.reserve(outputs.size());
  for (RequestOutput& output : outputs) {
    if (ledger_.record(output)) noted.push_back(std::move(output));
  }
  events_.outputs(std::move(noted));
  go_on();
}

void Replica::on_died() {
  events_.died(supervisor_.load());
  auto flushes = std::exchange(flushes_, {});
  for (const auto& [ticket, done] : flushes) done(std::nullopt);
  events_.outputs(ledger_.engine_died());
  go_on();
}

// Without an engine nobody else looks at the time limits.
void Replica::sweep_deadlines() {
  if (ready() || ledger_.size() == 0) return;
  events_.outputs(ledger_.expire(Ledger::Clock::now()));
  deadline_timer_.set(kDeadlineSweep, [this] { sweep_deadlines(); });
}

void Replica::flush_cache(std::function<void(std::optional<bool>)> done) {
  if (!ready()) {
    done(std::nullopt);
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
