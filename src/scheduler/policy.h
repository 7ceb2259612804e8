// The decisions of the scheduler as pure functions and small values; the batcher (batcher.h) carries them out.
//
// 1. Every running request that decodes gets its row in every step. If the KV pool cannot hold the new rows, the
//    request that is last in precedence is retracted: it loses its pages, not its tokens, and waits again, first in the
//    queue. The first in precedence is never retracted and fits alone (submit() made sure), so it always finishes:
//    neither deadlock nor livelock.
// 2. The rest of the step's rows goes to prompts: first to those that run already, then to the head of the queue.
// 3. A waiting request is admitted if the pool holds its tokens and leaves the reserve for what everybody who runs may
//    still generate. Nobody overtakes a head of the queue that does not fit, so a giant request is not starved.
//    Priority orders the queue and retractions; it never pushes out a running request for the sake of a waiting one.
#pragma once

#include <cstdint>
#include <span>

#include "scheduler/scheduler.h"
#include "scheduler/sequence.h"

namespace plait {

// Among running requests: who keeps its place when KV memory runs out.
struct Precedence {
  SchedulePolicy policy = SchedulePolicy::kFirstCome;
  bool operator()(const Sequence* a, const Sequence* b) const;
};

// Among waiting ones: retracted ones first, then by precedence.
struct QueueOrder {
  SchedulePolicy policy = SchedulePolicy::kFirstCome;
  bool operator()(const Sequence* a, const Sequence* b) const;
};

// What a step may still spend on prompts.
struct PrefillBudget {
  int64_t rows = 0;
  int64_t logit_rows = 0;

  // Rows that prompts get beside `decode_rows`, at least one: prompts make progress whatever runs.
  static PrefillBudget beside(int64_t decode_rows, const SchedulerOptions& options);
  // Takes as many of the next rows of `sequence` as the budget allows, possibly none.
  int64_t take(const Sequence& sequence);
};

// Of the rows [launched_tokens, launched_tokens + rows) those at the end whose logits are wanted.
int64_t logit_rows(const Sequence& sequence, int64_t rows);

// The share of its remaining max_new_tokens that a request is expected to use. Falls slowly while everything fits,
// rises when a retraction shows that it was too low; at 1 no admission can cause a retraction.
class GenerationReserve {
 public:
  explicit GenerationReserve(double conservativeness);
  void decode_step_passed();
  void retraction_happened();
  // Pages that `running` and `candidate` are expected to need beyond those of their present tokens.
  int64_t pages(std::span<Sequence* const> running, const Sequence& candidate, int64_t page_tokens) const;

 private:
  int64_t growth_pages(const Sequence& sequence, int64_t page_tokens) const;
  double least_share_;
  double share_;
};

// Whether `candidate` should wait one step because a prompt in progress is about to compute the page that it needs
// next, after `matched_tokens` from the prefix cache. A burst of requests with one system prompt computes it once.
bool awaits_prefix_of(const Sequence& candidate, int64_t matched_tokens, const Sequence& running, int64_t page_tokens);

inline int64_t pages_for(int64_t tokens, int64_t page_tokens) {
  return (tokens + page_tokens - 1) / page_tokens;
}

}  // namespace plait
