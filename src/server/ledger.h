// What every unfinished request has been promised and given: enough to go on after the engine died.
//
// The front end adds a request when it accepts it, records each output before the client sees it, and asks after a
// crash what to submit again: the prompt, and as output so far exactly the tokens that were delivered. Seeds are drawn
// before a request is added, so it continues as it would have gone on. A pure data structure; not thread safe.
//
// A request that kills every engine that runs it must not take the others down. A request in flight when the engine
// dies gets a strike unless it made progress since the engine started. With kSuspectStrikes it is a suspect: suspects
// are submitted again one at a time, the next when the previous one made progress. One that reaches kPoisonStrikes is
// failed.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "scheduler/request.h"

namespace plait {

class Ledger {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr int kSuspectStrikes = 2;
  static constexpr int kPoisonStrikes = 3;

  // request.id is new; request.output_ids is empty. A time limit counts from `now`. `submitted`: the engine has it
  // (else it waits for resume()).
  void add(Request request, bool submitted, Clock::time_point now);
  // Takes note of an output that the engine sent. False: the request is unknown (aborted, or finished by a stop
  // string), its output is to be ignored. An output with `finish` removes it.
  bool record(const RequestOutput& output);
  void remove(RequestId id);
  size_t size() const { return entries_.size(); }
  // Requests that got no token since they were last submitted.
  size_t without_progress() const;

  // The engine died: strikes. Returns the final outputs (kAbort, kInternal) of requests that are given up; they are
  // removed.
  std::vector<RequestOutput> engine_died();
  // A new engine is ready: what to submit to it, in the order of arrival, and the final outputs of requests that turned
  // out to be complete, or past their time limit; those are removed.
  struct Resumption {
    std::vector<Request> submit;
    std::vector<RequestOutput> finished;
  };
  Resumption resume(Clock::time_point now);
  // The next suspect, if none is on trial: call after record() and remove().
  std::optional<Request> next_suspect(Clock::time_point now);

  // Past their time limit: final outputs (kAbort, kDeadline); they are removed. For times without an engine.
  std::vector<RequestOutput> expire(Clock::time_point now);

 private:
  struct Entry {
    Request request;  // output_ids: delivered tokens
    std::optional<Clock::time_point> deadline;
    bool prompt_logprobs_delivered = false;
    bool submitted = false;   // to the engine that runs now
    bool progressed = false;  // since then
    int strikes = 0;
  };

  std::optional<Finish> complete(const Entry& entry) const;
  Request to_submit(Entry& entry, Clock::time_point now) const;

  std::map<RequestId, Entry> entries_;  // ids grow: the order of arrival
  std::optional<RequestId> on_trial_;
  bool suspects_wait_ = false;
};

}  // namespace plait
