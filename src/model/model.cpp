#include "model/model.h"

#include "model/deepseek_model.h"

namespace plait {

Result<std::unique_ptr<Model>> make_model(const ModelConfig& config, const ModelOptions& options) {
  switch (config.family) {
    case Family::kDeepseekV2:
    case Family::kDeepseekV3:
    case Family::kKimiK2:
      return std::unique_ptr<Model>(std::make_unique<DeepseekModel>(config, options));
  }
  return unsupported(fmt::format("no model for model_type {}", config.model_type));
}

}  // namespace plait
