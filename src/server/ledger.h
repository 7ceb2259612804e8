// What every unfinished request has been promised and given: enough to go on after the engine died.
//
// The front end adds a request when it accepts it, records each output before the client sees it, and asks what to
// submit: a new request as it came, after a crash every unfinished one, with exactly the delivered tokens as its output
// so far. Seeds are drawn before a request is added, so it continues as it would have gone on. A pure data structure;
// not thread safe.
//
// A request that kills every engine that runs it must not take the others down. A request that was submitted when the
// engine died gets a strike unless it made progress in that engine. From kSuspectStrikes on it is a suspect, and
// suspects are tried: the next engine gets them first, one at a time, each until it makes progress, with nothing beside
// it that has not proven harmless; what is new or waits is held back so long. Only a suspect that is on trial can get
// further strikes, and at kPoisonStrikes it is given up. A chance crash, even several, condemns nobody.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "scheduler/request.h"

namespace plait {

class Ledger {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr int kSuspectStrikes = 2;
  static constexpr int kPoisonStrikes = 4;

  // request.id is new and larger than all before; request.output_ids is empty. A time limit counts from `now`.
  void add(Request request, Clock::time_point now);
  // What to submit to the engine now, in the order of arrival. To be called while an engine is ready: after it became
  // so, and after add(), record() and remove().
  std::vector<Request> next(Clock::time_point now);

  // Takes note of an output that the engine sent. False: the request is unknown (aborted, or finished by a stop
  // string), its output is to be ignored. An output with `finish` removes it.
  bool record(const RequestOutput& output);
  void remove(RequestId id);
  size_t size() const { return entries_.size(); }
  int64_t tokens() const { return tokens_; }  // of all requests: prompts and outputs so far

  // The engine died: strikes, and everything waits for the next one. Returns the final outputs of requests that end
  // here and are removed: given up (kAbort, kInternal), or complete but for the engine's last word.
  std::vector<RequestOutput> engine_died();
  // Past their time limit: final outputs (kAbort, kDeadline); they are removed. For times without an engine.
  std::vector<RequestOutput> expire(Clock::time_point now);

 private:
  struct Entry {
    Request request;  // output_ids: delivered tokens; routed_experts_start: behind the delivered rows
    std::optional<Clock::time_point> deadline;
    bool prompt_logprobs_delivered = false;
    bool progressed = false;  // in the engine that it was submitted to
    int strikes = 0;
  };
  using Entries = std::map<RequestId, Entry>;

  Request submit(RequestId id, Clock::time_point now);

  Entries entries_;  // ids grow: the order of arrival
  int64_t tokens_ = 0;
  std::set<RequestId> waiting_;  // not submitted to the engine that runs now
  std::set<RequestId> suspects_;
  std::optional<RequestId> on_trial_;
};

}  // namespace plait
