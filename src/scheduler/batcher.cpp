#include "scheduler/batcher.h"

#include "base/assert.h"

namespace plait {
namespace {

// Waiting requests that may be passed over in one step because a running one computes their prefix.
constexpr int kMostPassedOver = 32;

}  // namespace

Batcher::Batcher(const SchedulerOptions& options, int64_t kv_pages, int64_t page_tokens,
                 const RoutedExpertPool* routed_experts, RunAhead run_ahead)
    : options_(options),
      page_tokens_(page_tokens),
      routed_experts_(routed_experts),
      run_ahead_(run_ahead),
      pool_(kv_pages),
      cache_(pool_, page_tokens),
      reserve_(options.conservativeness),
      waiting_(QueueOrder{options.policy}) {
  PLAIT_ASSERT(
      options.max_running_requests > 0 && options.chunked_prefill_tokens > 0 && options.prompt_logprob_rows > 0,
      "a scheduler limit is not positive");
  for (int64_t slot = options.max_running_requests - 1; slot >= 0; --slot)
    free_state_slots_.push_back(static_cast<int32_t>(slot));
}

Batcher::~Batcher() = default;

Status Batcher::check(const Request& request) const {
  const auto prompt = static_cast<int64_t>(request.prompt_ids.size());
  const int64_t longest = prompt + request.sampling.max_new_tokens;
  const int64_t capacity = pool_.total() * page_tokens_;
  if (prompt == 0) return invalid("the prompt has no tokens");
  if (request.sampling.max_new_tokens < 0) return invalid("max_new_tokens is negative");
  if (options_.context_tokens > 0 && longest > options_.context_tokens)
    return invalid(fmt::format("prompt ({} tokens) + max_new_tokens ({}) is {} tokens; the context length is {}",
                               prompt, request.sampling.max_new_tokens, longest, options_.context_tokens));
  if (longest > capacity)
    return invalid(
        fmt::format("prompt ({} tokens) + max_new_tokens ({}) is {} tokens; the KV pool holds {}. Lower "
                    "max_new_tokens, or start with a larger --max-total-tokens or --mem-fraction-static",
                    prompt, request.sampling.max_new_tokens, longest, capacity));
  if (request.logprob_start < -1 || request.logprob_start > prompt)
    return invalid(
        fmt::format("logprob_start is {}; it must be in [-1, {}], the prompt's length", request.logprob_start, prompt));
  if (request.return_routed_experts && routed_experts_ == nullptr)
    return invalid("routed experts are not kept: start with --enable-return-routed-experts");
  if (request.routed_experts_start < 0)
    return invalid(fmt::format("routed_experts_start is {}; it must not be negative", request.routed_experts_start));
  return {};
}

void Batcher::add(Request&& request, Clock::time_point now) {
  const RequestId id = request.id;
  auto [slot, added] = sequences_.emplace(id, std::make_unique<Sequence>(std::move(request), arrivals_++, now));
  PLAIT_ASSERT(added, "a request id is used twice");
  Sequence& sequence = *slot->second;
  if (sequence.deadline) deadlines_.insert(&sequence);
  waiting_.insert(&sequence);
  // It came back with all its outputs: only the news of its end was lost.
  if (sequence.output_size() > 0)
    if (auto end = sequence.finish_after_known_tokens()) finish(sequence, std::move(*end));
}

void Batcher::abort(RequestId id, const Error& why) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  finish(*found->second, {.kind = FinishKind::kAbort, .error = why.kind, .message = why.message});
}

void Batcher::abort_all(const Error& why) {
  while (!sequences_.empty()) abort(sequences_.begin()->first, why);
}

void Batcher::expire(Clock::time_point now) {
  while (!deadlines_.empty() && *(*deadlines_.begin())->deadline <= now) {
    Sequence& sequence = **deadlines_.begin();
    finish(sequence, {.kind = FinishKind::kAbort,
                      .error = ErrorKind::kDeadline,
                      .message = fmt::format("the request's time limit of {} ms passed after {} of {} tokens",
                                             sequence.request.time_limit->count(), sequence.output_size(),
                                             sequence.request.sampling.max_new_tokens)});
  }
}

// -- Planning --------------------------------------------------------------------------------------------------------

Batch Batcher::plan() {
  Batch batch;
  if (!has_work() || !make_room_for_decoding()) return batch;
  const auto decode_rows =
      std::count_if(running_.begin(), running_.end(), [this](Sequence* s) { return s->decoding() && can_launch(*s); });
  auto budget = PrefillBudget::beside(decode_rows, options_);
  schedule_running(batch, budget);
  admit_waiting(batch, budget);
  PLAIT_ASSERT(!batch.entries.empty() || steps_under_way_ > 0, "requests wait or run, and none got a row");
  if (batch.entries.empty()) return batch;
  build_step(batch);
  ++steps_under_way_;
  if (decode_rows > 0) reserve_.decode_step_passed();
  return batch;
}

int64_t Batcher::missing_pages(const Sequence& sequence) const {
  return pages_for(sequence.size(), page_tokens_) - static_cast<int64_t>(sequence.pages.size());
}

// Whether rows of it can be added to a step now, while others may be under way.
bool Batcher::can_launch(const Sequence& sequence) const {
  if (sequence.steps_under_way == 0) return true;
  if (sequence.wants_prompt_logprobs()) return false;  // which of them follow depends on those under way
  if (!sequence.awaits_token()) return true;
  return run_ahead_.future_tokens && sequence.remaining_tokens() > 0;
}

// False: pages are missing, and taking them from somebody has to wait for the steps under way.
bool Batcher::make_room_for_decoding() {
  const auto missing = [this] {
    int64_t pages = 0;
    for (const Sequence* sequence : running_) pages += missing_pages(*sequence);
    return pages;
  };
  while (missing() > available_pages()) {
    if (steps_under_way_ > 0) return false;
    PLAIT_ASSERT(running_.size() > 1, "a request that was accepted does not fit the KV pool");
    retract(*running_.back());
  }
  for (Sequence* sequence : running_) allocate_pages(missing_pages(*sequence), sequence->pages);
  return true;
}

void Batcher::schedule_running(Batch& batch, PrefillBudget& budget) {
  // Where steps follow each other through pipeline stages, each takes its share of those that decode.
  int64_t decoding_left = std::numeric_limits<int64_t>::max();
  if (!run_ahead_.future_tokens)
    decoding_left = (static_cast<int64_t>(running_.size()) + run_ahead_.steps - 1) / run_ahead_.steps;
  for (Sequence* sequence : running_) {
    if (!can_launch(*sequence)) continue;
    const bool prefill = !sequence->decoding();
    if (!prefill && decoding_left-- <= 0) continue;
    const int64_t rows = prefill ? budget.take(*sequence) : 1;
    if (rows > 0)
      batch.entries.push_back({.sequence = sequence,
                               .first_position = sequence->launched_tokens,
                               .rows = rows,
                               .logit_rows = logit_rows(*sequence, rows),
                               .prefill = prefill});
  }
}

void Batcher::admit_waiting(Batch& batch, PrefillBudget& budget) {
  int passed_over = 0;
  for (auto next = waiting_.begin(); next != waiting_.end() && budget.rows > 0 && passed_over < kMostPassedOver;) {
    if (free_state_slots_.empty()) return;  // as many run as may, or have ended and still hold theirs
    Sequence& sequence = **next;
    const auto match = cache_.match(sequence.row_keys(0, sequence.reusable_tokens()));
    if (awaits_running_prefix(sequence, static_cast<int64_t>(match.pages.size()) * page_tokens_)) {
      ++passed_over;
      ++next;
      continue;
    }
    if (!start(sequence, match)) return;
    next = waiting_.erase(next);
    batch.cached_tokens += sequence.computed_tokens;
    const int64_t rows = budget.take(sequence);
    if (rows > 0)
      batch.entries.push_back({.sequence = &sequence,
                               .first_position = sequence.launched_tokens,
                               .rows = rows,
                               .logit_rows = logit_rows(sequence, rows),
                               .prefill = true});
  }
}

bool Batcher::awaits_running_prefix(const Sequence& candidate, int64_t matched_tokens) const {
  return options_.radix_cache && std::any_of(running_.begin(), running_.end(), [&](const Sequence* sequence) {
           return awaits_prefix_of(candidate, matched_tokens, *sequence, page_tokens_);
         });
}

// Gives a waiting sequence its pages, or returns false and changes nothing.
bool Batcher::start(Sequence& sequence, const RadixCache::Match& match) {
  // Locked first: pages that it reuses can't be evicted for it.
  cache_.lock(match.node);
  const auto shared = static_cast<int64_t>(match.pages.size());
  const int64_t needed = pages_for(sequence.size(), page_tokens_) - shared;
  const int64_t reserved = running_.empty() ? 0 : reserve_.pages(running_, sequence, page_tokens_);
  if (needed + reserved > available_pages()) {
    PLAIT_ASSERT(!running_.empty() || !ended_.empty(), "a request that was accepted does not fit the KV pool");
    cache_.unlock(match.node);
    return false;
  }
  sequence.prefix = match.node;
  sequence.shared_pages = shared;
  sequence.pages = match.pages;
  sequence.computed_tokens = sequence.launched_tokens = shared * page_tokens_;
  allocate_pages(needed, sequence.pages);
  sequence.state_slot = free_state_slots_.back();
  free_state_slots_.pop_back();
  running_.insert(std::upper_bound(running_.begin(), running_.end(), &sequence, Precedence{options_.policy}),
                  &sequence);
  if (!sequence.retracted) {
    sequence.cached_tokens = std::min(sequence.computed_tokens, sequence.prompt_size());
    totals_.prompt_tokens += static_cast<uint64_t>(sequence.prompt_size());
    totals_.cached_prompt_tokens += static_cast<uint64_t>(sequence.cached_tokens);
  }
  return true;
}

void Batcher::build_step(Batch& batch) {
  StepBuilder builder(++steps_);
  for (Batch::Entry& entry : batch.entries) {
    Sequence& sequence = *entry.sequence;
    const int64_t end = entry.first_position + entry.rows;
    const auto rows =
        std::span(sequence.tokens).subspan(static_cast<size_t>(entry.first_position), static_cast<size_t>(entry.rows));
    const auto pages = std::span(sequence.pages).first(static_cast<size_t>(pages_for(end, page_tokens_)));
    builder.add(rows, entry.first_position, pages, sequence.prompt_size(), entry.logit_rows, sequence.state_slot);
    for (int64_t position = end - entry.logit_rows; position < end; ++position) {
      auto history = std::make_unique<std::vector<int32_t>>();
      batch.sampling_rows.push_back(sequence.sampling_row(position, *history));
      if (!history->empty()) batch.histories.push_back(std::move(history));
    }
    entry.chooses = sequence.samples() && end == sequence.size();
    sequence.launched_tokens = end;
    ++sequence.steps_under_way;
    if (entry.chooses) sequence.tokens.push_back(future_token(sequence.state_slot));
    if (entry.prefill) {
      ++batch.prefill_sequences;
      batch.prefill_rows += entry.rows;
    }
  }
  batch.step = std::move(builder).build();
}

// -- Results
// -----------------------------------------------------------------------------------------------------------

void Batcher::process(const Batch& batch, std::span<SampledToken> sampled) {
  PLAIT_ASSERT(sampled.size() == batch.sampling_rows.size(), "one sampled token for each row of logits");
  --steps_under_way_;
  for (const Batch::Entry& entry : batch.entries) {
    const auto count = static_cast<size_t>(entry.logit_rows);
    process_entry(entry, sampled.first(count));
    sampled = sampled.subspan(count);
  }
}

void Batcher::process_entry(const Batch::Entry& entry, std::span<SampledToken> sampled) {
  Sequence& sequence = *entry.sequence;
  const int64_t end = entry.first_position + entry.rows;
  --sequence.steps_under_way;
  if (sequence.ended) return release_ended(sequence);
  if (std::any_of(sampled.begin(), sampled.end(), [](const SampledToken& token) { return token.not_finite; }))
    return fail_not_finite(sequence);
  take_prompt_logprobs(sequence, end - entry.logit_rows, sampled);
  sequence.computed_tokens = end;
  take_routed_experts(sequence);
  publish_rows(sequence, sequence.prompt_size());
  if (entry.chooses) return take_token(sequence, end, sampled.back());
  if (end < sequence.size()) return;  // more chunks to come
  finish(sequence, {.kind = FinishKind::kLength});
}

void Batcher::take_prompt_logprobs(Sequence& sequence, int64_t first_position, std::span<SampledToken> sampled) {
  if (!sequence.wants_prompt_logprobs()) return;
  for (size_t i = 0; i < sampled.size(); ++i) {
    const int64_t position = first_position + static_cast<int64_t>(i) + 1;  // the one that this row predicts
    if (position < sequence.prompt_size())
      sequence.prompt_logprobs.push_back({.id = sequence.tokens[static_cast<size_t>(position)],
                                          .logprob = sampled[i].logprob,
                                          .top = std::move(sampled[i].top),
                                          .requested = std::move(sampled[i].requested)});
  }
}

// Those that are new, while the pages are the request's; a cached prefix comes with its first step. Little by little,
// so that the end of a long request costs no more than its other steps.
void Batcher::take_routed_experts(Sequence& sequence) {
  const int64_t begin = sequence.next_expert_position, end = sequence.computed_tokens;
  if (!sequence.request.return_routed_experts || begin >= end) return;
  RoutedRows& rows = output_of(sequence).routed_experts;
  routed_experts_->read(sequence.pages, begin, end, rows.ids);
  rows.count += end - begin;
  sequence.next_expert_position = end;
}

void Batcher::take_token(Sequence& sequence, int64_t position, SampledToken& token) {
  PLAIT_ASSERT(position == sequence.known_tokens, "tokens become known in their order");
  RequestOutput& output = output_of(sequence);
  output.prompt_logprobs = std::exchange(sequence.prompt_logprobs, {});
  output.tokens.push_back({token.id, token.logprob, std::move(token.top), std::move(token.requested)});
  sequence.tokens[static_cast<size_t>(position)] = token.id;
  ++sequence.known_tokens;
  ++totals_.generated_tokens;
  if (auto end = sequence.finish_after_known_tokens()) finish(sequence, std::move(*end));
}

// The news about a request that are not delivered yet.
RequestOutput& Batcher::output_of(const Sequence& sequence) {
  if (outputs_.empty() || outputs_.back().id != sequence.request.id)
    outputs_.push_back({.id = sequence.request.id, .cached_tokens = sequence.cached_tokens});
  return outputs_.back();
}

std::vector<RequestOutput> Batcher::take_outputs() {
  return std::exchange(outputs_, {});
}

// -- Ends and pages
// ------------------------------------------------------------------------------------------------------

void Batcher::retract(Sequence& sequence) {
  // All complete pages, generated rows too: unless they are evicted meanwhile, it goes on where it stopped.
  publish_rows(sequence, sequence.size());
  release_pages(sequence);
  std::erase(running_, &sequence);
  sequence.retracted = true;
  waiting_.insert(&sequence);
  reserve_.retraction_happened();
  ++totals_.retractions;
}

void Batcher::finish(Sequence& sequence, Finish finish) {
  // Its generated rows are of no use to others (radix_cache.h).
  publish_rows(sequence, sequence.prompt_size());
  deliver_finish(sequence, std::move(finish));
}

void Batcher::fail_not_finite(Sequence& sequence) {
  sequence.rows_are_bad = true;
  const int64_t position = sequence.known_tokens - sequence.prompt_size();
  deliver_finish(sequence,
                 {.kind = FinishKind::kAbort,
                  .error = ErrorKind::kInternal,
                  .message = fmt::format("no token is possible at output position {}: every logit is NaN or -infinity. "
                                         "Other requests are not affected; if it happens again, try --dtype float32",
                                         position)});
}

void Batcher::deliver_finish(Sequence& sequence, Finish finish) {
  if (finish.kind == FinishKind::kAbort) ++totals_.aborted;
  RequestOutput& output = output_of(sequence);
  if (finish.kind != FinishKind::kAbort && !sequence.prompt_logprobs.empty())
    output.prompt_logprobs = std::move(sequence.prompt_logprobs);
  output.finish = std::move(finish);
  waiting_.erase(&sequence);
  std::erase(running_, &sequence);
  if (sequence.deadline) deadlines_.erase(&sequence);
  const auto own = sequences_.find(sequence.request.id);
  sequence.ended = true;
  ended_.emplace(&sequence, std::move(own->second));
  sequences_.erase(own);
  release_ended(sequence);
}

// Pages that steps under way write to are nobody else's before they are done.
void Batcher::release_ended(Sequence& sequence) {
  if (sequence.steps_under_way > 0) return;
  RadixCache::Node* const prefix = sequence.prefix;
  release_pages(sequence);
  if (sequence.rows_are_bad) cache_.drop(prefix);
  ended_.erase(&sequence);
}

// Hands the complete pages of the first `tokens` computed tokens over to the prefix cache.
void Batcher::publish_rows(Sequence& sequence, int64_t tokens) {
  const int64_t complete = std::min(tokens, sequence.computed_tokens) / page_tokens_;
  if (!options_.radix_cache || complete <= sequence.shared_pages) return;
  const auto keys = sequence.row_keys(sequence.shared_pages * page_tokens_, complete * page_tokens_);
  const auto pages =
      std::span(sequence.pages)
          .subspan(static_cast<size_t>(sequence.shared_pages), static_cast<size_t>(complete - sequence.shared_pages));
  RadixCache::Node* const end = cache_.insert(sequence.prefix, keys, pages);
  cache_.lock(end);
  cache_.unlock(sequence.prefix);
  sequence.prefix = end;
  sequence.shared_pages = complete;
}

void Batcher::release_pages(Sequence& sequence) {
  if (sequence.prefix == nullptr) return;
  cache_.unlock(sequence.prefix);
  pool_.release(std::span(sequence.pages).subspan(static_cast<size_t>(sequence.shared_pages)));
  free_state_slots_.push_back(sequence.state_slot);
  sequence.pages.clear();
  sequence.shared_pages = 0;
  sequence.computed_tokens = sequence.launched_tokens = 0;
  sequence.prefix = nullptr;
  sequence.state_slot = -1;
}

void Batcher::allocate_pages(int64_t count, std::vector<int32_t>& pages) {
  if (count > pool_.free()) cache_.evict(count - pool_.free());
  pool_.allocate(count, pages);
}

void Batcher::clear_cache() {
  PLAIT_ASSERT(idle(), "the prefix cache is cleared while requests run");
  cache_.clear();
}

// -- Accounts
// ------------------------------------------------------------------------------------------------------------

SchedulerLoad& SchedulerLoad::operator+=(const SchedulerLoad& other) {
  running += other.running;
  queued += other.queued;
  kv_tokens += other.kv_tokens;
  kv_used_tokens += other.kv_used_tokens;
  kv_evictable_tokens += other.kv_evictable_tokens;
  steps += other.steps;
  prompt_tokens += other.prompt_tokens;
  cached_prompt_tokens += other.cached_prompt_tokens;
  generated_tokens += other.generated_tokens;
  retractions += other.retractions;
  aborted += other.aborted;
  compiles_after_ready += other.compiles_after_ready;
  generation_rate += other.generation_rate;
  return *this;
}

SchedulerLoad Batcher::load() const {
  SchedulerLoad load = totals_;
  load.running = static_cast<int64_t>(running_.size());
  load.queued = static_cast<int64_t>(waiting_.size());
  load.kv_tokens = pool_.total() * page_tokens_;
  load.kv_evictable_tokens = cache_.evictable_pages() * page_tokens_;
  load.kv_used_tokens = (pool_.total() - available_pages()) * page_tokens_;
  return load;
}

void Batcher::check_invariants() const {
  std::vector<RadixCache::Node*> locked;
  std::vector<bool> is_private(static_cast<size_t>(pool_.total()), false);
  std::vector<bool> slot_taken(static_cast<size_t>(options_.max_running_requests), false);
  int64_t private_pages = 0;
  std::vector<const Sequence*> holders(running_.begin(), running_.end());
  for (const auto& [sequence, own] : ended_) holders.push_back(sequence);
  for (const Sequence* sequence : holders) {
    PLAIT_ASSERT(sequence->prefix != nullptr && !waiting_.contains(const_cast<Sequence*>(sequence)),
                 "a running request is not set up");
    locked.push_back(sequence->prefix);
    const auto held = static_cast<int64_t>(sequence->pages.size());
    PLAIT_ASSERT(sequence->shared_pages <= held && sequence->launched_tokens <= held * page_tokens_,
                 "a running request has computed more than its pages hold");
    PLAIT_ASSERT(sequence->computed_tokens <= sequence->launched_tokens &&
                     (sequence->pending_tokens() > 0 || sequence->steps_under_way > 0),
                 "a running request has nothing to compute");
    PLAIT_ASSERT(sequence->ended == (ended_.contains(const_cast<Sequence*>(sequence))) &&
                     (!sequence->ended || sequence->steps_under_way > 0),
                 "a request that has ended holds pages for nobody");
    for (size_t i = static_cast<size_t>(sequence->shared_pages); i < sequence->pages.size(); ++i, ++private_pages) {
      const auto page = static_cast<size_t>(sequence->pages[i]);
      PLAIT_ASSERT(!is_private[page], "two requests own the same KV page");
      is_private[page] = true;
    }
    const auto slot = static_cast<size_t>(sequence->state_slot);
    PLAIT_ASSERT(!slot_taken[slot], "two requests own the same state slot");
    slot_taken[slot] = true;
  }
  for (const Sequence* sequence : waiting_)
    PLAIT_ASSERT(sequence->pages.empty() && sequence->prefix == nullptr, "a waiting request holds KV pages");
  PLAIT_ASSERT(pool_.free() + cache_.cached_pages() + private_pages == pool_.total(), "KV pages are lost or doubled");
  PLAIT_ASSERT(sequences_.size() == waiting_.size() + running_.size(), "a request is neither waiting nor running");
  PLAIT_ASSERT(free_state_slots_.size() + holders.size() == slot_taken.size(), "state slots are lost or doubled");
  PLAIT_ASSERT(std::is_sorted(running_.begin(), running_.end(), Precedence{options_.policy}),
               "running_ is out of order");
  cache_.check_invariants(locked);
}

}  // namespace plait
