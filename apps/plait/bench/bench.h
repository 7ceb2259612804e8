// What `plait bench` can be asked to measure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace plait {

struct BenchOptions {
  enum class Format { kTable, kLines, kJson };
  enum class WeightKind { kAsStored, kBF16, kFP8 };

  bool machine_only = false;
  bool server = false;    // the cost of serving instead of the model's speed
  bool parallel = false;  // two ranks on this machine against one, and what they send each other
  bool kernels = false;   // a GPU's products and quantisers
  bool tune = false;      // which of them are the fastest, for a table
  Format format = Format::kTable;

  // Without --model-path: V2-Lite's widths. Layers 0: as many as fit, at most kMostLayers.
  std::vector<WeightKind> weights = {WeightKind::kBF16, WeightKind::kFP8};
  int64_t layers = 0;
  std::vector<int64_t> prefill_tokens = {128, 512, 2048};
  std::vector<int64_t> decode_batch = {1, 4, 16, 64};
  std::vector<int64_t> decode_context_tokens = {128, 8192};
  double seconds_per_row = 2;

  // kernels
  std::vector<int64_t> kernel_rows;  // empty: the usual ones
  bool deepgemm_sizes = false;       // instead of a model's
  bool all_kernels = false;          // every configuration, not only the chosen one
  std::string only_kernels;          // with this in a product's or a kernel's name
  // tune
  double tune_seconds = 300;
  std::string output;  // empty: the device's usual place
};

}  // namespace plait
