// `plait plan --kernels`: the kernels that ranks can run, for people and as JSON.
#pragma once

#include "planned_model.h"

namespace plait::app {

// Errors: those of kernel_question and kernels_of_ranks.
Status print_kernels(const PlannedModel& model, const Settings& settings);

}  // namespace plait::app
