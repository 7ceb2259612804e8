// What `plan` and `compile` begin with: a model's config.json under parallel flags that go together, and the question
// which kernels that takes. Nothing else is read or allocated.
#pragma once

#include "checkpoint/model_config.h"
#include "engine/kernel_manifest.h"
#include "settings.h"

namespace plait::app {

struct PlannedModel {
  ModelConfig config;
  ParallelConfig parallel;  // as the rules have forced it
};

// Says on standard error what the rules refused or forced. Errors: those of reading the model; kInvalid if the flags do
// not go together.
Result<PlannedModel> plan_model(const Settings& settings);

// For --device and --arch. kInvalid: a device that is not known; errors of choose_kernels_by.
Result<ManifestQuestion> kernel_question(const PlannedModel& model, const Settings& settings);

}  // namespace plait::app
