// The heart of the scheduler without threads and clocks: queue, running requests, KV pages, prefix cache.
//
// An iteration is plan() -> StepExecutor -> process(). plan() decides who runs and makes an immutable Step; process()
// takes the sampled tokens and finishes requests; outputs collect until take_outputs(). Steps may be planned before
// earlier ones are processed, in the same order: the token that such a step under way chooses stands in for itself as a
// future token, and a request that ends meanwhile keeps its pages until the steps that write them are done. add, abort
// and expire are called between iterations. One thread; time comes in as an argument, so a test can replay anything.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "model/step.h"
#include "scheduler/page_pool.h"
#include "scheduler/policy.h"
#include "scheduler/radix_cache.h"
#include "scheduler/scheduler.h"
#include "scheduler/sequence.h"

namespace plait {

// One step and what belongs to it.
struct Batch {
  struct Entry {
    Sequence* sequence = nullptr;
    int64_t first_position = 0;
    int64_t rows = 0;
    int64_t logit_rows = 0;
    bool prefill = false;
    bool chooses = false;  // the sequence's next token
  };
  Step step;
  std::vector<SamplingRow> sampling_rows;                        // [step.logit_rows.size()]
  std::vector<Entry> entries;                                    // as step.sequences
  std::vector<std::unique_ptr<std::vector<int32_t>>> histories;  // that sampling_rows refer to

  // For the log.
  int64_t prefill_sequences = 0;
  int64_t prefill_rows = 0;
  int64_t cached_tokens = 0;  // found in the prefix cache by requests that were admitted in this step
};

// How far plan() may run ahead of process(), as the executor says (StepExecutor).
struct RunAhead {
  int steps = 1;
  bool future_tokens = false;
};

class Batcher {
 public:
  // `routed_experts`: what the executor keeps beside the pages, null if it does not; outlives this.
  Batcher(const SchedulerOptions& options, int64_t kv_pages, int64_t page_tokens,
          const RoutedExpertPool* routed_experts = nullptr, RunAhead run_ahead = {});
  ~Batcher();

  // kInvalid if it can never run. Pure; any thread.
  Status check(const Request& request) const;

  void add(Request&& request, Clock::time_point now);
  void abort(RequestId id, const Error& why);  // unknown ids are ignored
  void abort_all(const Error& why);
  void expire(Clock::time_point now);  // fails what is past its deadline

  bool has_work() const { return !sequences_.empty(); }
  int64_t unfinished() const { return static_cast<int64_t>(sequences_.size()); }
  // Of at least one row if there is work and no step is under way; else of none if nothing can be launched before the
  // next process().
  Batch plan();
  // `sampled`: [batch.sampling_rows.size()].
  void process(const Batch& batch, std::span<SampledToken> sampled);
  std::vector<RequestOutput> take_outputs();

  bool idle() const { return sequences_.empty() && ended_.empty(); }
  void clear_cache();  // idle
  // All but steps and generation_rate.
  SchedulerLoad load() const;
  // Asserts that every page has exactly one owner, and everything else that is counted twice agrees.
  void check_invariants() const;

 private:
  struct DeadlineOrder {
    bool operator()(const Sequence* a, const Sequence* b) const {
      return a->deadline != b->deadline ? a->deadline < b->deadline : a->arrival < b->arrival;
    }
  };

  bool make_room_for_decoding();
  bool can_launch(const Sequence& sequence) const;
  void schedule_running(Batch& batch, PrefillBudget& budget);
  void admit_waiting(Batch& batch, PrefillBudget& budget);
  bool awaits_running_prefix(const Sequence& candidate, int64_t matched_tokens) const;
  bool start(Sequence& sequence, const RadixCache::Match& match);
  void build_step(Batch& batch);

  void process_entry(const Batch::Entry& entry, std::span<SampledToken> sampled);
  void take_prompt_logprobs(Sequence& sequence, int64_t first_position, std::span<SampledToken> sampled);
  void take_routed_experts(Sequence& sequence);
  void take_token(Sequence& sequence, int64_t position, SampledToken& token);

  void retract(Sequence& sequence);
  void finish(Sequence& sequence, Finish finish);
  void fail_not_finite(Sequence& sequence);
  void deliver_finish(Sequence& sequence, Finish finish);
  void publish_rows(Sequence& sequence, int64_t tokens);
  void release_pages(Sequence& sequence);
  void release_ended(Sequence& sequence);
  void allocate_pages(int64_t count, std::vector<int32_t>& pages);
  int64_t available_pages() const { return pool_.free() + cache_.evictable_pages(); }
  int64_t missing_pages(const Sequence& sequence) const;
  RequestOutput& output_of(const Sequence& sequence);

  const SchedulerOptions options_;
  const int64_t page_tokens_;
  const RoutedExpertPool* const routed_experts_;
  const RunAhead run_ahead_;
  PagePool pool_;
  RadixCache cache_;
  GenerationReserve reserve_;
  std::vector<int32_t> free_state_slots_;
  std::unordered_map<RequestId, std::unique_ptr<Sequence>> sequences_;  // waiting and running
  std::unordered_map<Sequence*, std::unique_ptr<Sequence>> ended_;      // while steps with rows of them are under way
  std::set<Sequence*, QueueOrder> waiting_;
  std::vector<Sequence*> running_;  // by precedence
  std::set<Sequence*, DeadlineOrder> deadlines_;
  std::vector<RequestOutput> outputs_;
  uint64_t arrivals_ = 0;
  uint64_t steps_ = 0;
  int steps_under_way_ = 0;
  SchedulerLoad totals_;  // its counters
};

}  // namespace plait
