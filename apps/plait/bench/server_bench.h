// What serving costs on top of the model: `plait bench --server`.
//
// Starts `plait serve` on the same checkpoint as a child, streams chat completions from it over HTTP, and in turns with
// that times the same steps in this process without server and scheduler. Main thread only.
#pragma once

#include "base/error.h"
#include "bench/bench.h"
#include "server/serve.h"

namespace plait {

struct ServerCost {
  double first_token_seconds = 0;         // from the start of the process to the first token of a chat completion
  double streamed_seconds_per_token = 0;  // batch 1, of the least disturbed stream
  double step_seconds_per_token = 0;      // the engine's own steps at the same positions, of the least disturbed round
  int64_t tokens = 0;                     // of each stream
  int streams = 0;                        // the figures are of the least disturbed one
  double overhead() const { return streamed_seconds_per_token - step_seconds_per_token; }
};

Result<ServerCost> measure_server(const ServeOptions& options);
Status bench_server(const ServeOptions& options, BenchOptions::Format format);

}  // namespace plait
