#include "server/ledger.h"

#include "base/assert.h"

namespace plait {
namespace {

RequestOutput aborted(RequestId id, ErrorKind error, std::string message) {
  RequestOutput output{.id = id};
  output.finish = Finish{.kind = FinishKind::kAbort, .error = error, .message = std::move(message)};
  return output;
}

RequestOutput past_time_limit(RequestId id) {
  return aborted(id, ErrorKind::kDeadline, "the request's time limit passed before it was complete");
}

bool contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

void Ledger::add(Request request, bool submitted, Clock::time_point now) {
  const RequestId id = request.id;
  Entry entry{.request = std::move(request), .submitted = submitted};
  if (entry.request.time_limit) entry.deadline = now + *entry.request.time_limit;
  const bool is_new = entries_.emplace(id, std::move(entry)).second;
  PLAIT_ASSERT(is_new, "request ids are never reused");
}

bool Ledger::record(const RequestOutput& output) {
  const auto found = entries_.find(output.id);
  if (found == entries_.end()) return false;
  if (output.finish) {
    remove(output.id);
    return true;
  }
  Entry& entry = found->second;
  for (const OutputToken& token : output.tokens) entry.request.output_ids.push_back(token.id);
  if (!output.prompt_logprobs.empty()) entry.prompt_logprobs_delivered = true;
  if (!output.tokens.empty()) {
    entry.progressed = true;
    entry.strikes = 0;
    if (on_trial_ == output.id) on_trial_.reset();
  }
  return true;
}

void Ledger::remove(RequestId id) {
  entries_.erase(id);
  if (on_trial_ == id) on_trial_.reset();
}

size_t Ledger::without_progress() const {
  return std::count_if(entries_.begin(), entries_.end(), [](const auto& item) { return !item.second.progressed; });
}

std::vector<RequestOutput> Ledger::engine_died() {
  on_trial_.reset();
  std::vector<RequestOutput> given_up;
  for (auto item = entries_.begin(); item != entries_.end();) {
    Entry& entry = item->second;
    if (entry.submitted && !entry.progressed) ++entry.strikes;
    entry.submitted = entry.progressed = false;
    if (entry.strikes < kPoisonStrikes) {
      ++item;
      continue;
    }
    given_up.push_back(
        aborted(item->first, ErrorKind::kInternal,
                fmt::format("the engine crashed {} times in a row while it worked on this request, which "
                            "is suspected to be the cause and was given up",
                            entry.strikes)));
    item = entries_.erase(item);
  }
  return given_up;
}

// All tokens were delivered, only the engine's last word was lost.
std::optional<Finish> Ledger::complete(const Entry& entry) const {
  const std::vector<int32_t>& tokens = entry.request.output_ids;
  const SamplingParams& sampling = entry.request.sampling;
  if (tokens.empty()) return std::nullopt;
  const bool may_stop = static_cast<int64_t>(tokens.size()) > sampling.min_new_tokens;
  const bool is_end = !sampling.ignore_eos && contains(entry.request.eos_token_ids, tokens.back());
  if (may_stop && (is_end || contains(sampling.stop_token_ids, tokens.back()))) {
    return Finish{.kind = FinishKind::kStop, .matched_token = tokens.back()};
  }
  if (static_cast<int64_t>(tokens.size()) >= sampling.max_new_tokens) return Finish{.kind = FinishKind::kLength};
  return std::nullopt;
}

Request Ledger::to_submit(Entry& entry, Clock::time_point now) const {
  entry.submitted = true;
  Request request = entry.request;
  if (entry.prompt_logprobs_delivered) request.logprob_start = -1;
  if (entry.deadline) request.time_limit = std::chrono::ceil<std::chrono::milliseconds>(*entry.deadline - now);
  return request;
}

std::vector<RequestOutput> Ledger::expire(Clock::time_point now) {
  std::vector<RequestOutput> expired;
  for (auto item = entries_.begin(); item != entries_.end();) {
    const auto& [id, entry] = *item;
    if (entry.deadline && *entry.deadline <= now) {
      expired.push_back(past_time_limit(id));
      if (on_trial_ == id) on_trial_.reset();
      item = entries_.erase(item);
    } else {
      ++item;
    }
  }
  return expired;
}

Ledger::Resumption Ledger::resume(Clock::time_point now) {
  Resumption result{.finished = expire(now)};
  for (auto item = entries_.begin(); item != entries_.end();) {
    auto& [id, entry] = *item;
    if (std::optional<Finish> finish = complete(entry)) {
      RequestOutput output{.id = id};
      output.finish = std::move(finish);
      result.finished.push_back(std::move(output));
      item = entries_.erase(item);
      continue;
    }
    if (entry.strikes >= kSuspectStrikes) {
      suspects_wait_ = true;
    } else if (!entry.submitted) {
      result.submit.push_back(to_submit(entry, now));
    }
    ++item;
  }
  if (auto suspect = next_suspect(now)) result.submit.push_back(std::move(*suspect));
  return result;
}

std::optional<Request> Ledger::next_suspect(Clock::time_point now) {
  if (on_trial_ || !suspects_wait_) return std::nullopt;
  for (auto& [id, entry] : entries_) {
    if (entry.submitted || entry.strikes < kSuspectStrikes) continue;
    on_trial_ = id;
    return to_submit(entry, now);
  }
  suspects_wait_ = false;
  return std::nullopt;
}

}  // namespace plait
