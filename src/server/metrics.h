// What /metrics shows, under SGLang's names. Loop thread only.
//
// Counters and histograms are the front end's own, so they survive a restart of the engine. Gauges repeat what the
// engine said last and are absent while there is none: absent is better than falsely zero.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "scheduler/scheduler.h"

namespace plait {

class Metrics {
 public:
  explicit Metrics(const std::string& model_name);
  ~Metrics();

  void first_token(double seconds_since_arrival, int64_t prompt_tokens, int64_t cached_tokens);
  // `tokens` came together, `seconds` after the ones before.
  void more_tokens(int64_t tokens, double seconds);
  void generated(int64_t tokens);
  void finished(double seconds_since_arrival, bool aborted);
  void engine_died(const SchedulerLoad& last_load);

  // Prometheus' text format. `unfinished`: requests in the ledgers. `loads`: what each replica's engine said last;
  // nullptr: it has none. Several are told apart by the label dp_rank.
  std::string expose(size_t unfinished, std::span<const SchedulerLoad* const> loads);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace plait
