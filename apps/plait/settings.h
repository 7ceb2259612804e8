// Everything that the command line can set. One value, made by parse_command_line and then read-only; a subcommand
// reads the part that its flags fill.
#pragma once

#include <string>
#include <vector>

#include "bench/bench.h"
#include "server/serve.h"
#include "topology/parallel_config.h"

namespace plait::app {

struct GenerateOptions {
  std::string prompt;     // "-": read from standard input
  std::string input_ids;  // "1,2,3" instead of a prompt
  bool chat = false;
  std::string system;
  SamplingParams sampling{.temperature = 0};  // a command gives the same answer twice unless it is asked not to
  std::vector<std::string> stop;
};

struct CheckOptions {
  bool environment = false;
};

struct PlanOptions {
  bool json = false;
  std::string svg;  // file to write
  bool decode = false;
  int64_t tokens = 0;    // of a data-parallel rank; 0: usual for the step
  bool kernels = false;  // instead of the exchange
  std::string device = "h200";
  std::string architecture = "sm_90a";
};

struct Settings {
  // Also holds the EngineOptions that every subcommand shares.
  ServeOptions serve;
  GenerateOptions generate;
  CheckOptions check;
  BenchOptions bench;
  PlanOptions plan;  // its device and architecture are for `compile`, too

  const EngineOptions& engine() const { return serve.engine; }
};

}  // namespace plait::app
