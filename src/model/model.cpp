#include "model/model.h"

#include "model/deepseek_model.h"

namespace plait {

StepCost::Part StepCost::total() const {
  Part total;
  for (const Part& part : parts) {
    total.weight_bytes += part.weight_bytes;
    total.kv_bytes += part.kv_bytes;
    total.flops += part.flops;
  }
  return total;
}

double StepCost::least_seconds(double bytes_per_second, double flops_per_second) const {
  double seconds = 0;
  for (const Part& part : parts)
    seconds += std::max((part.weight_bytes + part.kv_bytes) / bytes_per_second, part.flops / flops_per_second);
  return seconds;
}

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
