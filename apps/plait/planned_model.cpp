#include "planned_model.h"

#include <cstdio>

#include "checkpoint/checkpoint.h"
#include "model/model_facts.h"
#include "topology/rules.h"

namespace plait::app {

Result<PlannedModel> plan_model(const Settings& settings) {
  const EngineOptions& options = settings.engine();
  PLAIT_ASSIGN_OR_RETURN(const std::filesystem::path folder, resolve_model_path(options.model_path));
  PLAIT_ASSIGN_OR_RETURN(ModelConfig config, read_model_config(folder, options.config_overrides));
  const ModelFacts facts = model_facts(config);
  const ParallelVerdict verdict = judge(options.parallel, &facts);
  for (const RuleFinding& finding : verdict.findings)
    fmt::print(stderr, "{}: {} ({})\n", finding.refused ? "refused" : "forced", finding.explanation, finding.rule);
  if (!verdict.accepted()) return invalid("the parallel flags do not go together");
  return PlannedModel{std::move(config), verdict.config};
}

Result<ManifestQuestion> kernel_question(const PlannedModel& model, const Settings& settings) {
  auto device = cuda::find_device(settings.plan.device);
  if (device.has_error()) return std::move(device).error().within("--device");
  PLAIT_RETURN_IF_ERROR(choose_kernels_by(settings.engine(), *device));
  ManifestQuestion question = manifest_question(settings.engine(), model.parallel, *std::move(device));
  question.architecture = settings.plan.architecture;
  return question;
}

}  // namespace plait::app
