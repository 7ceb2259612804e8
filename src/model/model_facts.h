// What parallel ranks must know of a model, from its configuration. Pure function.
#pragma once

#include "checkpoint/model_config.h"
#include "topology/model_facts.h"

namespace plait {

ModelFacts model_facts(const ModelConfig& config);

}  // namespace plait
