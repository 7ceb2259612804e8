// `plait bench --parallel`: ranks of this machine against one rank, in one run.
//
// For each way of having two ranks: the time of a prefill and of a decode step beside one rank's with the same threads,
// and for each collective the bytes that the plan announces beside those that moved. Also the time that planning takes
// for a large model on 64 ranks, of which none is started.
#pragma once

#include "bench/bench.h"
#include "engine/engine.h"

namespace plait {

// Of DeepSeek-V2-Lite's widths with random BF16 weights: bench.layers (0: 3), the first prefill length and the first
// batch and context of `bench`.
Status bench_parallel(const EngineOptions& options, const BenchOptions& bench);

}  // namespace plait
