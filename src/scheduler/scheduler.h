// Decides what runs in each step: admission, chunked prefill, continuous batching, prefix cache, retraction.
//
// One thread calls run(); submit, abort, flush_cache, load and stop may be called from any thread. Outputs are
// delivered on the run() thread through the sink, which may call back. While nothing is to do, run() sleeps: an idle
// engine uses no CPU. Whenever a request waits or runs, some request gets rows in the next step, so there is never a
// reason to wait for anything but a call.
//
// Data-parallel ranks have queues and KV pools of their own; one iteration makes a step for each, and those without
// work take part with an idle one. A request stays on the rank that it was given to.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "scheduler/request.h"

namespace plait {

enum class SchedulePolicy { kFirstCome, kPriority };  // --schedule-policy fcfs | priority

struct SchedulerOptions {
  int64_t max_running_requests = 256;
  int64_t max_queued_requests = 4096;  // submit() refuses beyond; 0: no limit
  // Most rows of a step: what decoding requests leave of it goes to prompts, at least one row. With small values a step
  // can have max_running_requests rows.
  int64_t chunked_prefill_tokens = 2048;
  // Most rows of a step whose logits are wanted for prompt logprobs; those that sample come on top.
  int64_t prompt_logprob_rows = 128;
  bool radix_cache = true;  // --disable-radix-cache clears it
  SchedulePolicy policy = SchedulePolicy::kFirstCome;
  // --schedule-conservativeness: scales how much KV memory admission keeps free for what running requests may still
  // generate. Less: larger batches and more retractions.
  double conservativeness = 1;
  int64_t context_tokens = 0;  // longest prompt + output
  // Steps are made and launched while others run, where the executor can; --disable-overlap-schedule clears it. Tokens
  // are the same.
  bool overlap = true;
};

// A snapshot for /get_load, /metrics and the log.
struct SchedulerLoad {
  int64_t running = 0;
  int64_t queued = 0;
  int64_t kv_tokens = 0;            // capacity
  int64_t kv_used_tokens = 0;       // held by running requests
  int64_t kv_evictable_tokens = 0;  // held by the prefix cache alone
  uint64_t steps = 0;
  uint64_t prompt_tokens = 0;  // totals since start
  uint64_t cached_prompt_tokens = 0;
  uint64_t generated_tokens = 0;
  uint64_t retractions = 0;
  uint64_t aborted = 0;
  uint64_t compiles_after_ready = 0;  // of the whole engine
  double generation_rate = 0;         // tokens per second, over the last few seconds

  // Of two data-parallel ranks together.
  SchedulerLoad& operator+=(const SchedulerLoad& other);
};

class Scheduler {
 public:
  using OutputSink = std::function<void(std::vector<RequestOutput>&&)>;

  Scheduler(const SchedulerOptions& options, StepExecutor& executor, OutputSink sink);
  ~Scheduler();

  // kExhausted: the queue is full. kInvalid: it can never fit (prompt + max_new_tokens past the context or the KV
  // pool), or its id is taken. kUnavailable: after stop().
  Status submit(Request request);
  // Idempotent; unknown ids are ignored. The request's last output says kAbort.
  void abort(RequestId id);
  void abort_all();
  // Empties the prefix cache. False (and nothing happens) while requests run or wait.
  bool flush_cache();
  SchedulerLoad load() const;

  // Until stop(). What the executor throws is engine-scoped: it leaves run(), and unfinished requests get no output,
  // because the process that supervises this one sends them again to the next.
  void run();
  void stop();  // from any thread; unfinished requests get kAbort

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace plait
