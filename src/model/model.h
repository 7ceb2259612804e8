// A model on one rank: weights and the forward pass.
//
// Made empty from a configuration, filled by the loader through weight_requests(), then const in effect: forward()
// changes only the KV memory it is given and scratch. One thread (the rank's own) calls forward; it uses the context's
// thread pool.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/model_config.h"
#include "checkpoint/weight_loader.h"
#include "kernels/context.h"
#include "layout/norm_place.h"
#include "model/kv_spec.h"
#include "model/shard.h"
#include "model/step.h"
#include "tensor/matrix.h"

namespace plait {

// KV memory of one rank, as the model sees it: for each component of its KvSpec a block of memory
// [layers, pages, page_tokens / tokens_per_row, row_width] (per-token kinds) or [layers, sequence slots, rows,
// row_width] (kinds that keep something per sequence).
struct KvMemory {
  struct Component {
    std::byte* data = nullptr;
    int64_t layer_stride_bytes = 0;
  };
  std::vector<Component> components;
  int64_t page_tokens = 0;
  int64_t pages = 0;
};

// Sees intermediate values of a forward pass. For tests and, later, for returning routed experts.
class ForwardObserver {
 public:
  virtual ~ForwardObserver() = default;
  virtual void layer_input(int64_t /*layer*/, ConstRows /*hidden [rows, hidden]*/) {}
  virtual void final_hidden(ConstRows /*after the final norm [logit rows, hidden]*/) {}
  virtual void routed_experts(int64_t /*layer*/, std::span<const int32_t> /*ids [rows, k]*/, int64_t /*k*/) {}
};

struct ModelOptions {
  kernels::Implementation implementation = kernels::Implementation::kFast;
  kernels::Activation activation = kernels::Activation::kBFloat16;
  ModelShard shard;
};

// Experts of every row and their weights, in workspace memory that the products of the same layer leave alone.
struct Routing {
  int32_t* expert_ids = nullptr;  // [rows, experts_per_token]
  float* weights = nullptr;       // [rows, experts_per_token]
};

// What a step must read and compute at least; `plait bench` divides by it.
struct StepCost {
  // What can be no faster than its bytes arrive, nor than its arithmetic: a matrix, or the attention of a layer.
  struct Part {
    double weight_bytes = 0;  // each matrix once, each routed expert that got a row once
    double kv_bytes = 0;
    double flops = 0;
  };
  std::vector<Part> parts;

  Part total() const;
  // Of a machine that reads and computes at these rates, both at once: for each part the longer of the two.
  double least_seconds(double bytes_per_second, double flops_per_second) const;
};

// The stages of a forward pass, on the rows and the part of the model that one rank holds. They communicate with
// nobody: where rows are needed and which sums are owed is the plan's knowledge (layout/), and whoever carries out the
// plan moves rows between stages. Rows are [rows, hidden] unless said otherwise; layers count from the model's first.
class ModelStages {
 public:
  virtual ~ModelStages() = default;

  // Before the others, once per step; refers to the step until the next one. `own`: the step's rows that this rank
  // attends for, in the order of its buffers, with rows past the step's end where they pad; empty: all, as they are.
  virtual void begin_step(const Step& step, std::span<const int64_t> own) = 0;
  // Owes a sum if the vocabulary is divided.
  virtual void embed(const kernels::Context& context, std::span<const int32_t> token_ids, Rows y) = 0;
  virtual void norm(const kernels::Context& context, NormPlace place, int64_t layer, ConstRows residual, Rows y) = 0;
  // residual += delta, then the norm.
  virtual void add_norm(const kernels::Context& context, NormPlace place, int64_t layer, ConstRows delta, Rows residual,
                        Rows y) = 0;
  // First half of attention: all that the hidden state feeds. y: [rows, projection_width()]. Ranks that share a row's
  // heads make the same projection if projection_is_shared(), so that it may come before rows are gathered.
  virtual int64_t projection_width() const = 0;
  virtual bool projection_is_shared() const = 0;
  virtual void project(const kernels::Context& context, int64_t layer, ConstRows x, Rows y) = 0;
  // Second half, of the rank's own rows. `projected` is changed in place. Owes a sum if heads are divided.
  // `all_cache_rows` gets what the own rows leave in the cache and returns it for all the step's rows, in the step's
  // order; empty: the own rows are all.
  using AllCacheRows = std::function<ConstRows(ConstRows own)>;
  virtual void attention(const kernels::Context& context, int64_t layer, const KvMemory& kv, Rows projected,
                         const AllCacheRows& all_cache_rows, Rows y) = 0;
  virtual bool has_experts(int64_t layer) const = 0;
  // Layers without experts. Owes a sum if the width is divided.
  virtual void dense(const kernels::Context& context, int64_t layer, ConstRows x, Rows y) = 0;
  // Layers with experts: the choice, then y = shared(x), then y += routed(x). Each owes a sum if its width, or the
  // experts, are divided.
  virtual Routing route(const kernels::Context& context, int64_t layer, ConstRows x) = 0;
  virtual void shared(const kernels::Context& context, int64_t layer, ConstRows x, Rows y) = 0;
  virtual void routed(const kernels::Context& context, int64_t layer, const Routing& routing, ConstRows x, Rows y) = 0;
  // y = expert(x) for rows that were sent to this rank's experts: those of local expert e begin at first_row[e].
  virtual void expert_rows(const kernels::Context& context, int64_t layer, ConstRows x,
                           std::span<const int64_t> first_row, std::span<const int64_t> row_count, Rows y) = 0;
  // logits: [rows, local part of the vocabulary]
  virtual void logits(const kernels::Context& context, ConstRows x, Rows logits) = 0;
};

class Model : public ModelStages {
 public:
  virtual const ModelConfig& config() const = 0;
  virtual std::vector<WeightRequest> weight_requests() = 0;
  // Call once after loading: derives what is computed from weights (absorbed matrices).
  virtual Status finish_loading() = 0;
  // Before loading (but after weight_requests) what the configuration announces, afterwards what is held.
  virtual size_t weight_bytes() const = 0;
  virtual KvSpec kv_spec() const = 0;
  // Scratch that a step of `rows` rows needs at most, with contexts of up to `context_tokens`, for the memory plan.
  virtual size_t scratch_bytes(int64_t rows, int64_t context_tokens) const = 0;

  // All stages in a row, for a shard that is the whole model: the specification of what ranks compute together.
  // logits: [step.logit_rows.size(), vocab_size]. `observer` may be nullptr.
  virtual void forward(const kernels::Context& context, const Step& step, const KvMemory& kv, Rows logits,
                       ForwardObserver* observer) = 0;
  // `distinct_experts`: experts with at least one row, summed over layers (0: estimated for uniform routing).
  virtual StepCost cost(const Step& step, int64_t distinct_experts) const = 0;
};

// Any of the families in ModelConfig. Errors: kUnsupported.
Result<std::unique_ptr<Model>> make_model(const ModelConfig& config, const ModelOptions& options);

}  // namespace plait
