// Moves a checkpoint's tensors into a model: in parallel, each byte copied once, straight into the packed layout.
//
// The model lists what it expects (WeightRequest); the loader finds each tensor, checks its shape and dtype and calls
// the request's `write` with a source that points into the memory map. `write` runs on loader threads, once per
// request, and may only touch memory that is that request's own. Several ranks of a process load together: their
// requests are merged by name, so that each byte is still read and checked once.
#pragma once

#include <atomic>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "tensor/weight_source.h"

namespace plait {

struct WeightRequest {
  std::string name;            // as published: "model.layers.3.mlp.gate.weight"
  std::vector<int64_t> shape;  // [rows, cols] or [cols]
  // May be FP8 with a sibling "<name>_scale_inv".
  bool may_be_quantised = false;
  std::function<Status(const WeightSource&)> write;  // empty: the tensor is expected, but nothing of it is needed here
};

struct LoadReport {
  size_t tensors = 0;
  size_t bytes = 0;
  double seconds = 0;
  std::vector<std::string> unexpected;  // tensors that nobody asked for, sorted; for the log
  std::vector<std::string> set_aside;   // recognised but not used yet: the MTP layer, rotary inv_freq
};

// Called now and then from the calling thread.
using LoadProgress = std::function<void(size_t done_bytes, size_t total_bytes)>;

struct LoadOptions {
  int threads = 0;                // 0: one per usable core
  int64_t num_hidden_layers = 0;  // tensors of layers from here on belong to MTP; 0: not known
  LoadProgress progress;          // may be empty
};

// The requests of several shards of one model as one list: of equal names, which have equal shapes, one request that
// writes to all.
std::vector<WeightRequest> merge_requests(std::vector<std::vector<WeightRequest>> of_shards);

// Errors (kCorrupt) name every missing tensor and every wrong shape or dtype, not only the first; names that differ in
// numbers only are folded (tensor_names.h). NaN in FP8 weights and scales that are not finite and positive are refused.
Result<LoadReport> load_weights(const Checkpoint& checkpoint, std::span<const WeightRequest> requests,
                                const LoadOptions& options);

// What load_weights would do, from the headers alone: the same report and the same errors, but for those that only
// values can show.
Result<LoadReport> check_weights(const Checkpoint& checkpoint, std::span<const WeightRequest> requests,
                                 int64_t num_hidden_layers);

// --load-format dummy: fills every request with reproducible small random values in `dtype`, without a checkpoint.
// If `fp8_block` is set, quantisable requests get e4m3 values and scales.
Result<LoadReport> load_dummy_weights(std::span<const WeightRequest> requests, DType dtype, int64_t fp8_block,
                                      const LoadOptions& options);

}  // namespace plait
