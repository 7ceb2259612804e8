#include "scheduler/policy.h"

namespace plait {
namespace {

// Shares of the remaining max_new_tokens. The first two are SGLang's.
constexpr double kInitialReserve = 0.7;
constexpr double kLeastReserve = 0.1;
constexpr double kReserveDecay = 0.001;  // a decode step: from the start to the least in 600 steps
constexpr double kReserveRaise = 0.2;    // a retraction

}  // namespace

bool Precedence::operator()(const Sequence* a, const Sequence* b) const {
  if (policy == SchedulePolicy::kPriority && a->request.priority != b->request.priority)
    return a->request.priority > b->request.priority;
  return a->arrival < b->arrival;
}

bool QueueOrder::operator()(const Sequence* a, const Sequence* b) const {
  if (a->retracted != b->retracted) return a->retracted;
  return Precedence{policy}(a, b);
}

PrefillBudget PrefillBudget::beside(int64_t decode_rows, const SchedulerOptions& options) {
  return {.rows = std::max<int64_t>(options.chunked_prefill_tokens - decode_rows, 1),
          .logit_rows = options.prompt_logprob_rows};
}

int64_t logit_rows(const Sequence& sequence, int64_t rows) {
  const int64_t end = sequence.launched_tokens + rows;
  return std::max<int64_t>(end - std::max(sequence.first_logit_position(), sequence.launched_tokens), 0);
}

int64_t PrefillBudget::take(const Sequence& sequence) {
  const int64_t without_logits = std::max<int64_t>(sequence.first_logit_position() - sequence.launched_tokens, 0);
  // The one row that samples is always allowed; what needs bounding is the logits of whole prompts.
  const bool wants_many = sequence.pending_tokens() > without_logits + 1;
  int64_t taken = std::min(sequence.pending_tokens(), rows);
  if (wants_many) {
    taken = std::min(taken, without_logits + logit_rows);
    logit_rows -= plait::logit_rows(sequence, taken);
  }
  rows -= taken;
  return taken;
}

GenerationReserve::GenerationReserve(double conservativeness)
    : least_share_(std::min(kLeastReserve * conservativeness, 1.0)),
      share_(std::min(kInitialReserve * conservativeness, 1.0)) {}

void GenerationReserve::decode_step_passed() {
  share_ = std::max(share_ - kReserveDecay, least_share_);
}

void GenerationReserve::retraction_happened() {
  share_ = std::min(share_ + kReserveRaise, 1.0);
}

int64_t GenerationReserve::growth_pages(const Sequence& sequence, int64_t page_tokens) const {
  const auto expected = static_cast<int64_t>(std::ceil(share_ * static_cast<double>(sequence.remaining_tokens())));
  return pages_for(sequence.size() + expected, page_tokens) - pages_for(sequence.size(), page_tokens);
}

int64_t GenerationReserve::pages(std::span<Sequence* const> running, const Sequence& candidate,
                                 int64_t page_tokens) const {
  int64_t pages = growth_pages(candidate, page_tokens);
  for (const Sequence* sequence : running) pages += growth_pages(*sequence, page_tokens);
  return pages;
}

bool awaits_prefix_of(const Sequence& candidate, int64_t matched_tokens, const Sequence& running, int64_t page_tokens) {
  const int64_t needed = matched_tokens + page_tokens;
  if (needed > std::min(candidate.reusable_tokens(), candidate.prompt_size())) return false;
  if (needed > running.prompt_size() || running.computed_tokens >= needed) return false;
  return std::equal(candidate.tokens.begin(), candidate.tokens.begin() + needed, running.tokens.begin());
}

}  // namespace plait
