#include "bench/bench.h"

#include "bench/kernel_bench.h"
#include "bench/machine_probe.h"
#include "bench/model_bench.h"
#include "bench/parallel_bench.h"
#include "bench/report.h"
#include "bench/server_bench.h"
#include "checkpoint/checkpoint.h"
#include "command.h"
#include "model/model_facts.h"
#include "topology/rules.h"

namespace plait::app {
namespace {

constexpr double kProbeSeconds = 2;
constexpr double kRowProbeSeconds = 0.2;

const char* name_of(BenchOptions::WeightKind weights) {
  return weights == BenchOptions::WeightKind::kFP8 ? "FP8" : "BF16";
}

void bench_rows(ModelRunner& runner, const BenchOptions& options, MachineProbe& probe, BenchReport& report) {
  bench_model(
      runner, options, [&] { return probe.ceilings(runner.activation(), kRowProbeSeconds); },
      [&](const BenchRow& row) { report.row(row); });
}

Status bench_built_in(const Settings& settings, BenchOptions::WeightKind weights, ThreadPool& pool, MachineProbe& probe,
                      BenchReport& report) {
  const int64_t layers = settings.bench.layers > 0 ? settings.bench.layers : layers_that_fit(weights);
  PLAIT_ASSIGN_OR_RETURN(const ModelConfig config, v2_lite_config(layers, weights));
  PLAIT_ASSIGN_OR_RETURN(const auto runner, ModelRunner::create(config, settings.engine(), {}, pool));
  report.begin_model(fmt::format("DeepSeek-V2-Lite's widths, {} layers, {}", layers, name_of(weights)),
                     runner->model().weight_bytes());
  bench_rows(*runner, settings.bench, probe, report);
  return {};
}

Status bench_checkpoint(const Settings& settings, ThreadPool& pool, MachineProbe& probe, BenchReport& report) {
  const EngineOptions& options = settings.engine();
  PLAIT_ASSIGN_OR_RETURN(const std::filesystem::path folder, resolve_model_path(options.model_path));
  PLAIT_ASSIGN_OR_RETURN(const ModelConfig config, read_model_config(folder, options.config_overrides));
  PLAIT_ASSIGN_OR_RETURN(const auto runner,
                         ModelRunner::create(config, options, options.dummy_weights ? "" : folder, pool));
  report.begin_model(fmt::format("{}, {} layers{}", options.model_path, config.num_hidden_layers,
                                 options.dummy_weights ? ", dummy weights" : ""),
                     runner->model().weight_bytes());
  bench_rows(*runner, settings.bench, probe, report);
  return {};
}

Result<ModelConfig> config_of(const EngineOptions& options) {
  PLAIT_ASSIGN_OR_RETURN(const std::filesystem::path folder, resolve_model_path(options.model_path));
  return read_model_config(folder, options.config_overrides);
}

// The kernels of the model that was asked for, in its layout.
Result<KernelQuestion> measured_kernels(const Settings& settings) {
  const EngineOptions& options = settings.engine();
  const bool built_in = options.model_path.empty();
  ParallelConfig parallel = options.parallel;
  if (built_in && parallel == ParallelConfig()) parallel = deepseek_v3_layout();
  PLAIT_ASSIGN_OR_RETURN(const ModelConfig config, built_in ? deepseek_v3_config() : config_of(options));
  const ModelFacts facts = model_facts(config);
  const ParallelVerdict verdict = judge(parallel, &facts);
  PLAIT_RETURN_IF_ERROR(verdict.status());

  // Only the calls of its ranks count: which device the question names does not matter.
  const ManifestQuestion manifest = manifest_question(options, verdict.config, cuda::known_devices().front());
  KernelQuestion question;
  PLAIT_ASSIGN_OR_RETURN(question.ranks, kernels_of_ranks(config, manifest));
  question.model = fmt::format("{}, {}", built_in ? "DeepSeek-V3" : options.model_path, to_flags(verdict.config));
  question.options = options;
  return question;
}

Status bench(const Settings& settings) {
  if (settings.bench.kernels || settings.bench.tune) {
    PLAIT_ASSIGN_OR_RETURN(const KernelQuestion question, measured_kernels(settings));
    return settings.bench.tune ? tune_kernels(question, settings.bench) : bench_kernels(question, settings.bench);
  }
  if (settings.bench.parallel) return bench_parallel(settings.engine(), settings.bench);
  if (settings.bench.server) return bench_server(settings.serve, settings.bench.format);
  ThreadPool pool(settings.engine().threads);
  BenchReport report(settings.bench.format, stdout);
  MachineProbe probe(pool);
  report.machine(probe.profile(kProbeSeconds));
  if (!settings.bench.machine_only) {
    if (!settings.engine().model_path.empty()) {
      PLAIT_RETURN_IF_ERROR(bench_checkpoint(settings, pool, probe, report));
    } else {
      for (const BenchOptions::WeightKind weights : settings.bench.weights) {
        PLAIT_RETURN_IF_ERROR(bench_built_in(settings, weights, pool, probe, report));
      }
    }
  }
  report.finish();
  return {};
}

}  // namespace

int run_bench(const Settings& settings) {
  return exit_status("bench", bench(settings));
}

}  // namespace plait::app
