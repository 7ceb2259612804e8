// `plait bench --kernels` and `--tune`: how fast a GPU's kernels are, and which are the fastest.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "bench/bench.h"
#include "bench/kernel_cases.h"
#include "engine/engine.h"

namespace plait {

// What is measured, and for which choices. Made from flags by the command.
struct KernelQuestion {
  std::vector<RankKernels> ranks;  // of the model, in its parallel layout; their calls are what counts
  std::string model;               // "DeepSeek-V3, --tp-size 8 ..."
  EngineOptions options;           // how kernels are chosen (choose_kernels_by), and where compiled ones are kept
};

// Errors: kNotFound or kUnsupported: there is no GPU of the Hopper generation, no driver or no compiler here, and what
// to do; kCorrupt, after everything was printed: kernels whose results were wrong, or differ in bits where they must
// not.
Status bench_kernels(const KernelQuestion& question, const BenchOptions& options);
Status tune_kernels(const KernelQuestion& question, const BenchOptions& options);

}  // namespace plait
