#include <cstdio>
#include <fstream>

#include "command.h"
#include "layout/plan_print.h"
#include "layout/planner.h"
#include "model/model_facts.h"
#include "plan_kernels.h"
#include "planned_model.h"
#include "topology/rules.h"

namespace plait::app {
namespace {

constexpr int64_t kPrefillTokens = 2048, kPrefillLogitRows = 4, kDecodeTokens = 64;

StepForm form_of(const PlanOptions& options, const ParallelConfig& config) {
  StepForm form;
  form.tokens = options.tokens > 0 ? options.tokens : options.decode ? kDecodeTokens : kPrefillTokens;
  form.logit_rows = options.decode ? form.tokens : std::min(form.tokens, kPrefillLogitRows);
  form.context_parallel = uses_context_parallel(config, std::vector<int64_t>{form.tokens});
  return form;
}

Status write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (!file) return io_error(fmt::format("--svg {}: cannot be written", path), errno);
  return {};
}

Status plan(const Settings& settings) {
  PLAIT_ASSIGN_OR_RETURN(const PlannedModel model, plan_model(settings));
  if (settings.plan.kernels) return print_kernels(model, settings);
  PLAIT_ASSIGN_OR_RETURN(const Plan made, make_plan(Topology(model.parallel), model_facts(model.config),
                                                    form_of(settings.plan, model.parallel)));
  fmt::print("{}{}", settings.plan.json ? to_json(made) : to_text(made), settings.plan.json ? "\n" : "");
  return settings.plan.svg.empty() ? Status() : write_file(settings.plan.svg, to_svg(made));
}

}  // namespace

int run_plan(const Settings& settings) {
  return exit_status("plan", plan(settings));
}

}  // namespace plait::app
