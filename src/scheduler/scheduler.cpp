#include "scheduler/scheduler.h"

#include <unordered_set>

#include "base/log.h"
#include "scheduler/batcher.h"
#include "scheduler/step_log.h"

namespace plait {
namespace {

struct Submit {
  Request request;
  Clock::time_point time;
};
struct Abort {
  RequestId id;
};
struct AbortAll {};
using Command = std::variant<Submit, Abort, AbortAll>;

const Error kAborted = cancelled("the request was aborted");
const Error kStopped = cancelled("the engine is shutting down");

}  // namespace

// Callers of other threads leave commands in the inbox; the run() thread alone touches the batcher, except that
// flush_cache may while no request is live. Lock order: batcher_mutex, then mutex. The executor and the sink are called
// without either.
struct Scheduler::State {
  State(const SchedulerOptions& options_, StepExecutor& executor_, OutputSink sink_)
      : options(options_),
        executor(executor_),
        sink(std::move(sink_)),
        batcher(options, executor.kv_pages(), executor.page_tokens()),
        published(batcher.load()) {}

  // -- The run() thread
  bool wait_for_work();
  void take_inbox();
  Batch plan();
  std::vector<SampledToken> execute(const Batch& batch);
  void process(const Batch& batch, std::span<SampledToken> sampled);
  void publish(uint64_t steps);
  void deliver();

  const SchedulerOptions options;
  StepExecutor& executor;
  const OutputSink sink;

  std::mutex batcher_mutex;
  Batcher batcher;
  StepLog step_log;

  mutable std::mutex mutex;  // guards what follows
  std::condition_variable wake;
  std::vector<Command> inbox;
  int64_t queued = 0;                  // waiting in the batcher or in the inbox
  std::unordered_set<RequestId> live;  // accepted and not finished
  SchedulerLoad published;
  RateWindow rate;
  bool stopping = false;
};

Scheduler::Scheduler(const SchedulerOptions& options, StepExecutor& executor, OutputSink sink)
    : state_(std::make_unique<State>(options, executor, std::move(sink))) {}

Scheduler::~Scheduler() = default;

// -- Any thread
// ----------------------------------------------------------------------------------------------------------

Status Scheduler::submit(Request request) {
  PLAIT_RETURN_IF_ERROR(state_->batcher.check(request));
  {
    const std::lock_guard lock(state_->mutex);
    if (state_->stopping) return unavailable(kStopped.message);
    const int64_t most = state_->options.max_queued_requests;
    if (most > 0 && state_->queued >= most)
      return exhausted(fmt::format("the queue is full: {} requests wait (--max-queued-requests {}); try again later",
                                   state_->queued, most));
    if (!state_->live.insert(request.id).second)
      return invalid(fmt::format("request id {} is in use by an unfinished request", request.id));
    ++state_->queued;
    state_->inbox.emplace_back(Submit{std::move(request), Clock::now()});
  }
  state_->wake.notify_one();
  return {};
}

void Scheduler::abort(RequestId id) {
  {
    const std::lock_guard lock(state_->mutex);
    if (!state_->live.contains(id)) return;
    state_->inbox.emplace_back(Abort{id});
  }
  state_->wake.notify_one();
}

void Scheduler::abort_all() {
  {
    const std::lock_guard lock(state_->mutex);
    if (state_->live.empty()) return;
    state_->inbox.emplace_back(AbortAll{});
  }
  state_->wake.notify_one();
}

bool Scheduler::flush_cache() {
  {
    // Without this look ahead the next lock could wait for a whole step.
    const std::lock_guard lock(state_->mutex);
    if (!state_->live.empty()) return false;
  }
  const std::lock_guard batcher_lock(state_->batcher_mutex);
  const std::lock_guard lock(state_->mutex);
  if (!state_->live.empty()) return false;
  state_->batcher.clear_cache();
  state_->published.kv_evictable_tokens = 0;
  return true;
}

SchedulerLoad Scheduler::load() const {
  const std::lock_guard lock(state_->mutex);
  SchedulerLoad load = state_->published;
  load.queued = state_->queued;
  load.generation_rate = state_->rate.per_second(Clock::now());
  return load;
}

void Scheduler::stop() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stopping = true;
  }
  state_->wake.notify_all();
}

// -- The run() thread
// ------------------------------------------------------------------------------------------------------

void Scheduler::run() {
  State& state = *state_;
  while (state.wait_for_work()) {
    const Batch batch = state.plan();
    state.deliver();  // aborted requests hear of it before the step runs
    if (batch.step.rows() == 0) continue;
    std::vector<SampledToken> sampled = state.execute(batch);
    state.process(batch, sampled);
    state.deliver();
  }
  {
    const std::lock_guard lock(state.batcher_mutex);
    state.take_inbox();
    state.batcher.abort_all(kStopped);
    state.publish(0);
  }
  state.deliver();
}

// False: stop.
bool Scheduler::State::wait_for_work() {
  std::unique_lock lock(mutex);
  wake.wait(lock, [this] { return stopping || !inbox.empty() || batcher.has_work(); });
  return !stopping;
}

void Scheduler::State::take_inbox() {
  std::vector<Command> commands;
  {
    const std::lock_guard lock(mutex);
    commands.swap(inbox);
  }
  struct Apply {
    Batcher& batcher;
    void operator()(Submit& command) { batcher.add(std::move(command.request), command.time); }
    void operator()(Abort& command) { batcher.abort(command.id, kAborted); }
    void operator()(AbortAll&) { batcher.abort_all(kAborted); }
  };
  for (Command& command : commands) std::visit(Apply{batcher}, command);
}

Batch Scheduler::State::plan() {
  const std::lock_guard lock(batcher_mutex);
  take_inbox();
  batcher.expire(Clock::now());
  Batch batch = batcher.plan();
  publish(0);
  return batch;
}

std::vector<SampledToken> Scheduler::State::execute(const Batch& batch) {
  try {
    return executor.execute(batch.step, batch.sampling_rows);
  } catch (const std::exception& failure) {
    log::error("step {} ({} rows of {} requests) failed: {}", batch.step.sequence_number, batch.step.rows(),
               batch.step.sequences.size(), failure.what());
    const std::lock_guard lock(mutex);
    stopping = true;
    throw;
  }
}

void Scheduler::State::process(const Batch& batch, std::span<SampledToken> sampled) {
  const std::lock_guard lock(batcher_mutex);
  batcher.process(batch, sampled);
  publish(1);
  step_log.step_finished(batch, batcher.load(), Clock::now());
}

// Makes what happened since the last time visible in load(). Under batcher_mutex.
void Scheduler::State::publish(uint64_t steps) {
  SchedulerLoad load = batcher.load();
  const std::lock_guard lock(mutex);
  const uint64_t generated = load.generated_tokens - published.generated_tokens;
  if (generated > 0) rate.add(generated, Clock::now());
  const auto is_submit = [](const Command& command) { return std::holds_alternative<Submit>(command); };
  queued = load.queued + std::count_if(inbox.begin(), inbox.end(), is_submit);
  load.steps = published.steps + steps;
  published = load;
}

void Scheduler::State::deliver() {
  std::vector<RequestOutput> outputs = batcher.take_outputs();
  if (outputs.empty()) return;
  {
    const std::lock_guard lock(mutex);
    for (const RequestOutput& output : outputs)
      if (output.finish) live.erase(output.id);
  }
  sink(std::move(outputs));
}

}  // namespace plait
