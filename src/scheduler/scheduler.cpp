#include "scheduler/scheduler.h"

#include <deque>
#include <unordered_set>

#include "base/launch_region.h"
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

SchedulerOptions share_of(const SchedulerOptions& all, int dp, int ranks) {
  const auto share = [&](int64_t total) { return data_parallel_limit(total, dp, ranks); };
  SchedulerOptions own = all;
  own.max_running_requests = share(all.max_running_requests);
  own.chunked_prefill_tokens = share(all.chunked_prefill_tokens);
  own.prompt_logprob_rows = share(all.prompt_logprob_rows);
  return own;
}

bool has_rows(const std::vector<Batch>& batches) {
  return std::any_of(batches.begin(), batches.end(), [](const Batch& batch) { return batch.step.rows() > 0; });
}

const Error kAborted = cancelled("the request was aborted");
const Error kStopped = cancelled("the engine is shutting down");

}  // namespace

// Callers of other threads leave commands in the inbox; the run() thread alone touches the batcher, except that
// flush_cache may while no request is live. Lock order: batcher_mutex, then mutex. The executor and the sink are called
// without either.
struct Scheduler::State {
  State(const SchedulerOptions& options_, StepExecutor& executor_, OutputSink sink_)
      : options(options_), executor(executor_), sink(std::move(sink_)) {
    const int ranks = executor.dp_ranks();
    for (int dp = 0; dp < ranks; ++dp) {
      const RunAhead run_ahead{.steps = most_under_way(), .future_tokens = executor.knows_future_tokens()};
      batchers.push_back(std::make_unique<Batcher>(share_of(options, dp, ranks), executor.kv_pages(),
                                                   executor.page_tokens(), executor.routed_experts(dp), run_ahead));
      step_logs.emplace_back(dp, ranks);
    }
    published = load();
  }

  // -- The run() thread
  bool wait_for_work(bool steps_under_way);
  void run_plain();
  void run_ahead();
  int most_under_way() const { return options.overlap ? executor.most_steps_under_way() : 1; }
  void take_inbox();
  void add(Request&& request, Clock::time_point now);
  std::vector<Batch> plan();
  template <typename Call>
  auto guarded(const std::vector<Batch>& batches, Call&& call);
  void launch(const std::vector<Batch>& batches);
  void collect(const std::vector<Batch>& batches);
  SchedulerLoad load() const;
  bool has_work() const;
  void publish(uint64_t steps);
  void deliver();

  const SchedulerOptions options;
  StepExecutor& executor;
  const OutputSink sink;

  std::mutex batcher_mutex;
  std::vector<std::unique_ptr<Batcher>> batchers;  // [data-parallel ranks]
  std::vector<StepLog> step_logs;
  size_t next_rank = 0;  // takes the next request among those that have equally few

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
  PLAIT_RETURN_IF_ERROR(state_->batchers.front()->check(request));
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
  const auto idle = [](const auto& batcher) { return batcher->idle(); };
  if (!std::all_of(state_->batchers.begin(), state_->batchers.end(), idle)) return false;  // a step is under way
  for (const auto& batcher : state_->batchers) batcher->clear_cache();
  state_->published.kv_evictable_tokens = 0;
  return true;
}

SchedulerLoad Scheduler::load() const {
  const std::lock_guard lock(state_->mutex);
  SchedulerLoad load = state_->published;
  load.queued = state_->queued;
  load.generation_rate = state_->rate.per_second(Clock::now());
  load.compiles_after_ready = state_->executor.compiles_after_ready();
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
  if (state.most_under_way() == 1) {
    state.run_plain();
  } else {
    state.run_ahead();
  }
  {
    const std::lock_guard lock(state.batcher_mutex);
    state.take_inbox();
    for (const auto& batcher : state.batchers) batcher->abort_all(kStopped);
    state.publish(0);
  }
  state.deliver();
}

// One step after the other: what run_ahead() must do, token for token.
void Scheduler::State::run_plain() {
  while (wait_for_work(/*steps_under_way=*/false)) {
    const std::vector<Batch> batches = plan();
    deliver();  // aborted requests hear of it before the step runs
    if (!has_rows(batches)) continue;
    launch(batches);
    collect(batches);
    deliver();
  }
}

// The next step is made and launched while the last ones run.
void Scheduler::State::run_ahead() {
  std::deque<std::vector<Batch>> under_way;
  const auto collect_oldest = [&] {
    collect(under_way.front());
    under_way.pop_front();
    deliver();
  };
  while (wait_for_work(!under_way.empty())) {
    std::vector<Batch> batches = plan();
    deliver();
    const bool launches = has_rows(batches);
    if (launches) {
      under_way.push_back(std::move(batches));
      launch(under_way.back());
    }
    if (!under_way.empty() && (!launches || std::ssize(under_way) >= most_under_way())) collect_oldest();
  }
  while (!under_way.empty()) collect_oldest();
}

// False: stop.
bool Scheduler::State::wait_for_work(bool steps_under_way) {
  std::unique_lock lock(mutex);
  if (steps_under_way) return !stopping;
  about_to_block("waiting for requests");
  wake.wait(lock, [this] { return stopping || !inbox.empty() || has_work(); });
  return !stopping;
}

void Scheduler::State::take_inbox() {
  std::vector<Command> commands;
  {
    const std::lock_guard lock(mutex);
    commands.swap(inbox);
  }
  struct Apply {
    State& state;
    void operator()(Submit& command) { state.add(std::move(command.request), command.time); }
    void operator()(Abort& command) {
      for (const auto& batcher : state.batchers) batcher->abort(command.id, kAborted);  // one of them knows it
    }
    void operator()(AbortAll&) {
      for (const auto& batcher : state.batchers) batcher->abort_all(kAborted);
    }
  };
  for (Command& command : commands) std::visit(Apply{*this}, command);
}

// To the data-parallel rank with the fewest unfinished requests, in turn among equals.
void Scheduler::State::add(Request&& request, Clock::time_point now) {
  size_t best = next_rank;
  for (size_t i = 0; i < batchers.size(); ++i) {
    const size_t rank = (next_rank + i) % batchers.size();
    if (batchers[rank]->unfinished() < batchers[best]->unfinished()) best = rank;
  }
  next_rank = (best + 1) % batchers.size();
  batchers[best]->add(std::move(request), now);
}

bool Scheduler::State::has_work() const {
  return std::any_of(batchers.begin(), batchers.end(), [](const auto& batcher) { return batcher->has_work(); });
}

SchedulerLoad Scheduler::State::load() const {
  SchedulerLoad all;
  for (const auto& batcher : batchers) all += batcher->load();
  return all;
}

std::vector<Batch> Scheduler::State::plan() {
  const std::lock_guard lock(batcher_mutex);
  take_inbox();
  std::vector<Batch> batches;
  for (const auto& batcher : batchers) {
    batcher->expire(Clock::now());
    batches.push_back(batcher->plan());
  }
  publish(0);
  return batches;
}

// Calls the executor; what it throws ends the engine.
template <typename Call>
auto Scheduler::State::guarded(const std::vector<Batch>& batches, Call&& call) {
  try {
    return call();
  } catch (const std::exception& failure) {
    for (const Batch& batch : batches)
      log::error("step {} ({} rows of {} requests) failed: {}", batch.step.sequence_number, batch.step.rows(),
                 batch.step.sequences.size(), failure.what());
    const std::lock_guard lock(mutex);
    stopping = true;
    throw;
  }
}

void Scheduler::State::launch(const std::vector<Batch>& batches) {
  std::vector<StepCall> calls;
  for (const Batch& batch : batches) calls.push_back({&batch.step, batch.sampling_rows});
  guarded(batches, [&] { executor.launch(calls); });
}

void Scheduler::State::collect(const std::vector<Batch>& batches) {
  std::vector<std::vector<SampledToken>> sampled = guarded(batches, [&] { return executor.collect(); });
  const std::lock_guard lock(batcher_mutex);
  for (size_t dp = 0; dp < batches.size(); ++dp)
    if (batches[dp].step.rows() > 0) batchers[dp]->process(batches[dp], sampled[dp]);
  publish(1);
  for (size_t dp = 0; dp < batches.size(); ++dp)
    if (batches[dp].step.rows() > 0) step_logs[dp].step_finished(batches[dp], batchers[dp]->load(), Clock::now());
}

// Makes what happened since the last time visible in load(). Under batcher_mutex.
void Scheduler::State::publish(uint64_t steps) {
  SchedulerLoad load = this->load();
  const std::lock_guard lock(mutex);
  const uint64_t generated = load.generated_tokens - published.generated_tokens;
  if (generated > 0) rate.add(generated, Clock::now());
  const auto is_submit = [](const Command& command) { return std::holds_alternative<Submit>(command); };
  queued = load.queued + std::count_if(inbox.begin(), inbox.end(), is_submit);
  load.steps = published.steps + steps;
  published = load;
}

void Scheduler::State::deliver() {
  std::vector<RequestOutput> outputs;
  for (const auto& batcher : batchers) {
    std::vector<RequestOutput> own = batcher->take_outputs();
    std::move(own.begin(), own.end(), std::back_inserter(outputs));
  }
  if (outputs.empty()) return;
  {
    const std::lock_guard lock(mutex);
    for (const RequestOutput& output : outputs)
      if (output.finish) live.erase(output.id);
  }
  sink(std::move(outputs));
}

}  // namespace plait
