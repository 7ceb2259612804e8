// `plait plan --kernels`: the kernels that ranks can run, for people and as JSON.
#pragma once

#include "checkpoint/model_config.h"
#include "settings.h"

namespace plait::app {

// `parallel` has passed judge() with the model's facts. Errors: kInvalid for a device that is not known, those of
// kernels_of_ranks.
Status print_kernels(const ModelConfig& config, const ParallelConfig& parallel, const Settings& settings);

}  // namespace plait::app
