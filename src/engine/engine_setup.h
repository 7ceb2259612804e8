// What Engine::create decides before it reads weights or allocates anything large; `plait check` stops there.
//
// Values, made on one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "checkpoint/model_config.h"
#include "checkpoint/weight_loader.h"
#include "engine/engine.h"
#include "kernels/context.h"
#include "model/model.h"
#include "topology/model_facts.h"
#include "topology/topology.h"

namespace plait {

struct EngineSetup {
  std::filesystem::path folder;
  ModelConfig config;
  kernels::Activation activation = kernels::Activation::kBFloat16;
  int64_t context_tokens = 0;                  // longest sequence that the model and the options allow
  ParallelConfig parallel;                     // with forced values
  std::vector<std::unique_ptr<Model>> models;  // [ranks of this host], each with its shard and without weights
};

// --dtype as an activation; `auto` follows the weights.
Result<kernels::Activation> activation_of(const std::string& dtype, const ModelConfig& config);

// Which part of the model a rank holds.
ModelShard shard_of(const Topology& topology, const ModelFacts& facts, int rank);

// What all hosts must be started with alike, as flags and values.
using SharedSettings = std::vector<std::pair<std::string, std::string>>;
SharedSettings shared_settings(const EngineOptions& options, const EngineSetup& setup);

// The tensors of the checkpoint: those that ranks here want, and the names of those that only others do.
Result<std::vector<WeightRequest>> expected_tensors(const EngineSetup& setup);

// Errors: kInvalid names the flag; those of resolve_model_path, read_model_config and make_model.
Result<EngineSetup> prepare_engine(const EngineOptions& options);

// Of all ranks of this engine on this host together; pages are those of each data-parallel rank. Until weights are
// loaded the models go by what config.json announces.
Result<MemoryPlan> plan_engine_memory(const EngineOptions& options, const EngineSetup& setup, size_t available_bytes);

}  // namespace plait
