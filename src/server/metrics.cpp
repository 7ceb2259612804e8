#include "server/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

namespace plait {
namespace {

using Buckets = prometheus::Histogram::BucketBoundaries;

const Buckets kFirstTokenBuckets{0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1,   2,
                                 4,     6,    8,    10,   20,  40,  60,  80,  100, 200, 400};
const Buckets kInterTokenBuckets{0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06,
                                 0.08,  0.1,   0.2,   0.3,   0.4,   0.6,  0.8,   1,    2,     4,    6,     8};
const Buckets kEndToEndBuckets{0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1,   2,   4,    6,    8,   10,
                               20,   40,  60,  80,  100, 200, 400, 600, 1200, 1800, 2400};

double share(double part, double whole) {
  return whole > 0 ? part / whole : 0;
}

// What an engine says of itself.
struct Gauge {
  const char* name;
  const char* help;
  double (*value)(const SchedulerLoad&);
};
constexpr Gauge kGauges[] = {
    {"sglang:num_running_reqs", "Requests that are in the running batch.",
     [](const SchedulerLoad& load) { return static_cast<double>(load.running); }},
    {"sglang:num_queue_reqs", "Requests that wait in the queue.",
     [](const SchedulerLoad& load) { return static_cast<double>(load.queued); }},
    {"sglang:num_used_tokens", "Tokens of the KV pool held by running requests.",
     [](const SchedulerLoad& load) { return static_cast<double>(load.kv_used_tokens); }},
    {"sglang:kv_evictable_tokens", "Tokens of the KV pool held by the prefix cache alone.",
     [](const SchedulerLoad& load) { return static_cast<double>(load.kv_evictable_tokens); }},
    {"sglang:max_total_num_tokens", "Capacity of the KV pool in tokens.",
     [](const SchedulerLoad& load) { return static_cast<double>(load.kv_tokens); }},
    {"sglang:token_usage", "Share of the KV pool held by running requests.",
     [](const SchedulerLoad& load) {
       return share(static_cast<double>(load.kv_used_tokens), static_cast<double>(load.kv_tokens));
     }},
    {"sglang:gen_throughput", "Generated tokens per second, over the last few seconds.",
     [](const SchedulerLoad& load) { return load.generation_rate; }},
    {"sglang:cache_hit_rate", "Share of prompt tokens that were found in the prefix cache.",
     [](const SchedulerLoad& load) {
       return share(static_cast<double>(load.cached_prompt_tokens), static_cast<double>(load.prompt_tokens));
     }},
};

}  // namespace

struct Metrics::State {
  explicit State(const std::string& model_name) : labels{{"model_name", model_name}} {}

  prometheus::Counter& counter(const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add(labels);
  }
  prometheus::Gauge& gauge(const char* name, const char* help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add(labels);
  }
  prometheus::Histogram& histogram(const char* name, const char* help, const Buckets& buckets) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add(labels, buckets);
  }

  prometheus::Labels labels;
  prometheus::Registry registry;
  uint64_t earlier_retractions = 0;  // an engine's own counts start again with it
  uint64_t earlier_compiles = 0;

  prometheus::Counter& prompt_tokens = counter("sglang:prompt_tokens_total", "Prompt tokens processed.");
  prometheus::Counter& cached_tokens =
      counter("sglang:cached_tokens_total", "Prompt tokens found in the prefix cache.");
  prometheus::Counter& generation_tokens = counter("sglang:generation_tokens_total", "Tokens generated.");
  prometheus::Counter& requests = counter("sglang:num_requests_total", "Requests finished.");
  prometheus::Counter& aborted =
      counter("sglang:num_aborted_requests_total", "Requests that ended without their answer.");
  prometheus::Counter& deaths =
      counter("plait:engine_deaths_total", "Engine processes that died and had to be replaced.");
  prometheus::Counter& compiles =
      counter("plait:compiles_after_ready_total", "Kernels that were compiled while serving: each is a defect.");
  prometheus::Gauge& retracted =
      gauge("sglang:num_retracted_reqs", "Times a running request gave its KV memory back, since the start.");
  prometheus::Gauge& unfinished =
      gauge("plait:unfinished_requests", "Requests accepted and not finished, as the front end counts them.");
  prometheus::Histogram& first_token = histogram("sglang:time_to_first_token_seconds",
                                                 "From a request's arrival to its first token.", kFirstTokenBuckets);
  prometheus::Histogram& inter_token =
      histogram("sglang:inter_token_latency_seconds", "Between two tokens of a request.", kInterTokenBuckets);
  prometheus::Histogram& end_to_end =
      histogram("sglang:e2e_request_latency_seconds", "From a request's arrival to its end.", kEndToEndBuckets);
};

Metrics::Metrics(const std::string& model_name) : state_(std::make_unique<State>(model_name)) {}

Metrics::~Metrics() = default;

void Metrics::first_token(double seconds_since_arrival, int64_t prompt_tokens, int64_t cached_tokens) {
  state_->first_token.Observe(seconds_since_arrival);
  state_->prompt_tokens.Increment(static_cast<double>(prompt_tokens));
  state_->cached_tokens.Increment(static_cast<double>(cached_tokens));
}

void Metrics::more_tokens(int64_t tokens, double seconds) {
  for (int64_t i = 0; i < tokens; ++i) state_->inter_token.Observe(seconds / static_cast<double>(tokens));
}

void Metrics::generated(int64_t tokens) {
  state_->generation_tokens.Increment(static_cast<double>(tokens));
}

void Metrics::finished(double seconds_since_arrival, bool aborted) {
  state_->requests.Increment();
  if (aborted) state_->aborted.Increment();
  state_->end_to_end.Observe(seconds_since_arrival);
}

void Metrics::engine_died(const SchedulerLoad& last_load) {
  state_->deaths.Increment();
  state_->earlier_retractions += last_load.retractions;
  state_->earlier_compiles += last_load.compiles_after_ready;
}

std::string Metrics::expose(size_t unfinished, std::span<const SchedulerLoad* const> loads) {
  uint64_t retractions = state_->earlier_retractions;
  uint64_t compiles = state_->earlier_compiles;
  prometheus::Registry engines;
  for (size_t replica = 0; replica < loads.size(); ++replica) {
    if (loads[replica] == nullptr) continue;
    retractions += loads[replica]->retractions;
    compiles += loads[replica]->compiles_after_ready;
    prometheus::Labels labels = state_->labels;
    if (loads.size() > 1) labels.emplace("dp_rank", std::to_string(replica));
    for (const Gauge& gauge : kGauges) {
      auto& family = prometheus::BuildGauge().Name(gauge.name).Help(gauge.help).Register(engines);
      family.Add(labels).Set(gauge.value(*loads[replica]));
    }
  }
  state_->unfinished.Set(static_cast<double>(unfinished));
  state_->compiles.Increment(std::max(0.0, static_cast<double>(compiles) - state_->compiles.Value()));
  state_->retracted.Set(static_cast<double>(retractions));
  const prometheus::TextSerializer serializer;
  return serializer.Serialize(state_->registry.Collect()) + serializer.Serialize(engines.Collect());
}

}  // namespace plait
