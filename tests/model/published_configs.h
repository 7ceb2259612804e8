// The configurations of models as they were published, for tests of sizes that need no weights.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/model_config.h"

namespace plait::testing {

ModelConfig deepseek_v3();       // FP8; R1 and V3.1 have the same
ModelConfig kimi_k2();           // FP8
ModelConfig deepseek_v2();       // BF16
ModelConfig deepseek_v2_lite();  // BF16, queries straight from the hidden state

struct PublishedModel {
  std::string name;
  ModelConfig config;
};
std::vector<PublishedModel> published_models();

}  // namespace plait::testing
