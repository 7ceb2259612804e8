// The ranks of all hosts as one worker: models, KV memory, threads; executes Steps.
//
// Owns the weights, the KV pools and all threads that compute, of this host. All calls come from one thread, the
// scheduler's, but failure(), which any may call. There is an Engine on every host; the first one's executes steps, the
// others' follow it.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/routed_expert_pool.h"
#include "engine/sampler.h"
#include "model/model.h"
#include "topology/disaggregation.h"
#include "topology/parallel_config.h"

namespace plait::comm {
class World;
}

namespace plait {

struct StartRecord;

// How the hosts of one engine wait for each other.
struct HostsOptions {
  std::chrono::seconds dist_timeout{600};        // --dist-timeout: until all hosts have met
  std::chrono::seconds rejoin_timeout{8};        // --rejoin-timeout: the same after one of them failed
  std::chrono::seconds collective_timeout{120};  // --collective-timeout: a rank for another, once all are ready
  std::string secret_file;                       // --dist-secret-file: what hosts must know to be let in
  bool rejoins = false;                          // this engine replaces one that failed
};

struct EngineOptions {
  std::string model_path;                // folder or hub id
  boost::json::object config_overrides;  // --json-model-override-args
  bool dummy_weights = false;            // --load-format dummy
  std::string dtype = "auto";            // auto | bfloat16 | float32: activations
  kernels::Implementation implementation = kernels::Implementation::kFast;
  int threads = 0;                    // of all ranks; 0: one per usable core
  int64_t page_tokens = 16;           // --page-size
  double mem_fraction_static = 0.85;  // of the memory that is available at start, for weights + KV
  size_t memory_bytes = 0;            // of the memory that is available, this much is for this engine; 0: all
  int64_t max_total_tokens = 0;       // --max-total-tokens: KV capacity; 0: from memory
  int64_t max_running_requests = 256;
  int64_t chunked_prefill_tokens = 2048;  // a step has at most max(this, max_running_requests) rows
  int64_t context_tokens = 0;             // --context-length; 0: max_position_embeddings
  bool keep_routed_experts = false;       // --enable-return-routed-experts: beside the KV cache, for all requests
  bool overlap = true;                    // steps may be launched while others run; --disable-overlap-schedule
  DisaggregationMode disaggregation = DisaggregationMode::kNull;
  std::string kernel_cache_dir;        // --kernel-cache-dir; empty: the user's (jit/cache.h)
  std::string kernel_table = "auto";   // --kernel-table, as use_gemm_table (kernels/cuda/gemm_table.h) takes it
  bool deterministic_kernels = false;  // --enable-deterministic-inference: DeviceModel::deterministic
  ParallelConfig parallel;
  HostsOptions hosts;
};

// Who wants to hear of an engine's start.
class StartListener {
 public:
  virtual ~StartListener() = default;
  // The ranks have a world. What waits there before the engine is ready has no limit. On the engine's thread.
  virtual void met(const std::shared_ptr<comm::World>& world) = 0;
  // What all hosts are at, this one's records first (start_records.h), when more than seconds has changed. On a thread
  // of its own, until the engine is ready.
  virtual void moved(const std::vector<StartRecord>& of_all_hosts) = 0;
};

// What memory goes to, decided and printed before serving.
struct MemoryPlan {
  size_t available_bytes = 0;
  size_t weight_bytes = 0;
  size_t kv_bytes = 0;
  size_t routed_expert_bytes = 0;  // of the KV cache's tokens; 0: not kept
  size_t scratch_bytes = 0;
  int64_t kv_tokens = 0;
  int64_t kv_pages = 0;
  int64_t page_tokens = 0;
  double mem_fraction_static = 0;
  std::string to_string() const;  // a small table
};

// One data-parallel rank's part of an iteration. What it refers to outlives the call.
struct StepCall {
  const Step* step = nullptr;
  std::span<const SamplingRow> rows;  // [step.logit_rows.size()], in that order
};

// What the scheduler drives; a fake stands in for it in scheduler tests.
class StepExecutor {
 public:
  virtual ~StepExecutor() = default;
  // One data-parallel rank. rows.size() == step.logit_rows.size(), in that order.
  virtual std::vector<SampledToken> execute(const Step& step, std::span<const SamplingRow> rows) = 0;
  // All of them at once, [dp_ranks()]; those without work have an idle step. Results as the rows.
  virtual std::vector<std::vector<SampledToken>> execute(std::span<const StepCall> of_dp_ranks);
  // The same in two halves. launch() returns before the step is done; steps are done in the order of their launches,
  // and collect() waits for the oldest. At most most_steps_under_way() have been launched and not collected; what their
  // calls refer to outlives collect(). Where that is more than one, token ids may be future tokens (step.h). By
  // default launch() does the whole step.
  virtual void launch(std::span<const StepCall> of_dp_ranks) { done_.push_back(execute(of_dp_ranks)); }
  virtual std::vector<std::vector<SampledToken>> collect();
  virtual int most_steps_under_way() const { return 1; }
  // Whether a step may refer to tokens of the one before it; else only rows whose tokens are known can be launched.
  virtual bool knows_future_tokens() const { return false; }
  // Each has a KV pool of its own, of the size that follows.
  virtual int dp_ranks() const { return 1; }
  virtual int64_t kv_pages() const = 0;
  virtual int64_t page_tokens() const = 0;
  // Beside the KV pool of that data-parallel rank; null if chosen experts are not kept. Rows of steps whose results
  // have been handed out may be read at any time.
  virtual const RoutedExpertPool* routed_experts(int /*dp*/) const { return nullptr; }
  // Kernels that were compiled although it is ready, on all hosts: each is a defect. Any thread may ask.
  virtual uint64_t compiles_after_ready() const { return 0; }
  // What ended it while it had nothing to do; it does not work again.
  virtual std::optional<Error> failure() const { return std::nullopt; }

 private:
  std::deque<std::vector<std::vector<SampledToken>>> done_;
};

class Engine : public StepExecutor {
 public:
  // Loads the checkpoint (or dummy weights), plans memory, allocates the pools and runs a first step. Progress goes to
  // the log and, on a terminal, to a bar. kExhausted if the weights and one page of KV do not fit; the message holds
  // the table and says which flag to lower.
  // With several hosts it waits for the others, and fails if one of them does, naming it.
  // `listener`, if there is one, outlives the engine.
  static Result<std::unique_ptr<Engine>> create(const EngineOptions& options, StartListener* listener = nullptr);

  // Whether this host executes steps; else it calls follow(), which takes part in the first host's until that ends.
  // `ready` is called when all hosts are.
  virtual bool leads() const = 0;
  virtual Status follow(const std::function<void()>& ready) = 0;
  // That it took part in; any thread may ask.
  virtual uint64_t followed_steps() const = 0;
  // Of the first host: lets the others end. Without it they take our end for a fault.
  virtual void end() = 0;

  virtual const ModelConfig& config() const = 0;
  virtual const MemoryPlan& memory_plan() const = 0;
  virtual Model& model() = 0;                  // of the first rank here
  virtual int64_t context_tokens() const = 0;  // longest sequence that is accepted
};

}  // namespace plait
