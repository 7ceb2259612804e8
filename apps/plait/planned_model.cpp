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

Result<ManifestQuestion> manifest_question(const PlannedModel& model, const Settings& settings) {
  const PlanOptions& plan = settings.plan;
  ManifestQuestion question{.parallel = model.parallel, .architecture = plan.architecture};
  auto device = cuda::find_device(plan.device);
  if (device.has_error()) return std::move(device).error().within("--device");
  question.device = std::move(*device);
  question.limits.max_running_requests = settings.engine().max_running_requests;
  question.limits.chunked_prefill_tokens = settings.engine().chunked_prefill_tokens;
  question.limits.mode = plan.disaggregation_mode;
  return question;
}

}  // namespace plait::app
