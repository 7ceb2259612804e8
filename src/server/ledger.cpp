#include "server/ledger.h"

#include "base/assert.h"

namespace plait {
namespace {

RequestOutput aborted(RequestId id, ErrorKind error, std::string message) {
  RequestOutput output{.id = id};
  output.finish = Finish{.kind = FinishKind::kAbort, .error = error, .message = std::move(message)};
  return output;
}

bool contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

int64_t token_count(const Request& request) {
  return static_cast<int64_t>(request.prompt_ids.size() + request.output_ids.size());
}

// How the request ended, if all its tokens were delivered and only the engine's last word was lost.
std::optional<Finish> completion(const Request& request) {
  const std::vector<int32_t>& tokens = request.output_ids;
  const SamplingParams& sampling = request.sampling;
  if (tokens.empty()) return std::nullopt;
  const bool may_stop = static_cast<int64_t>(tokens.size()) > sampling.min_new_tokens;
  const bool is_end = !sampling.ignore_eos && contains(request.eos_token_ids, tokens.back());
  if (may_stop && (is_end || contains(sampling.stop_token_ids, tokens.back()))) {
    return Finish{.kind = FinishKind::kStop, .matched_token = tokens.back()};
  }
  if (static_cast<int64_t>(tokens.size()) >= sampling.max_new_tokens) return Finish{.kind = FinishKind::kLength};
  return std::nullopt;
}

}  // namespace

void Ledger::add(Request request, Clock::time_point now) {
  const RequestId id = request.id;
  PLAIT_ASSERT(entries_.empty() || id > entries_.rbegin()->first, "request ids grow");
  Entry entry{.request = std::move(request)};
  tokens_ += token_count(entry.request);
  if (entry.request.time_limit) entry.deadline = now + *entry.request.time_limit;
  entries_.emplace(id, std::move(entry));
  waiting_.insert(id);
}

std::vector<Request> Ledger::next(Clock::time_point now) {
  if (on_trial_ || waiting_.empty()) return {};
  std::vector<Request> requests;
  if (!suspects_.empty()) {
    on_trial_ = *suspects_.begin();
    requests.push_back(submit(*on_trial_, now));
    return requests;
  }
  requests.reserve(waiting_.size());
  while (!waiting_.empty()) requests.push_back(submit(*waiting_.begin(), now));
  return requests;
}

Request Ledger::submit(RequestId id, Clock::time_point now) {
  waiting_.erase(id);
  const Entry& entry = entries_.at(id);
  Request request = entry.request;
  if (entry.prompt_logprobs_delivered) request.logprob_start = -1;
  if (entry.deadline) request.time_limit = std::chrono::ceil<std::chrono::milliseconds>(*entry.deadline - now);
  return request;
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
  tokens_ += static_cast<int64_t>(output.tokens.size());
  entry.request.routed_experts_start += output.routed_experts.count;
  if (!output.prompt_logprobs.empty()) entry.prompt_logprobs_delivered = true;
  if (output.tokens.empty()) return true;
  entry.progressed = true;
  entry.strikes = 0;
  suspects_.erase(output.id);
  if (on_trial_ == output.id) on_trial_.reset();
  return true;
}

void Ledger::remove(RequestId id) {
  const auto found = entries_.find(id);
  if (found == entries_.end()) return;
  tokens_ -= token_count(found->second.request);
  entries_.erase(found);
  waiting_.erase(id);
  suspects_.erase(id);
  if (on_trial_ == id) on_trial_.reset();
}

std::vector<RequestOutput> Ledger::engine_died() {
  on_trial_.reset();
  std::vector<RequestOutput> ended;
  for (auto& [id, entry] : entries_) {
    const bool submitted = !waiting_.contains(id);
    if (submitted && !entry.progressed) ++entry.strikes;
    entry.progressed = false;
    waiting_.insert(id);
    if (entry.strikes >= kSuspectStrikes) suspects_.insert(id);
    if (entry.strikes >= kPoisonStrikes) {
      ended.push_back(aborted(id, ErrorKind::kInternal,
                              fmt::format("the engine crashed {} times in a row while it worked on this request, which "
                                          "is suspected to be the cause and was given up",
                                          entry.strikes)));
    } else if (std::optional<Finish> finish = completion(entry.request)) {
      RequestOutput output{.id = id};
      output.finish = std::move(finish);
      ended.push_back(std::move(output));
    }
  }
  for (const RequestOutput& output : ended) remove(output.id);
  return ended;
}

std::vector<RequestOutput> Ledger::expire(Clock::time_point now) {
  std::vector<RequestOutput> expired;
  for (const auto& [id, entry] : entries_) {
    if (entry.deadline && *entry.deadline <= now) {
      expired.push_back(aborted(id, ErrorKind::kDeadline, "the request's time limit passed before it was complete"));
    }
  }
  for (const RequestOutput& output : expired) remove(output.id);
  return expired;
}

}  // namespace plait
