#include <cerrno>
#include <cstdio>
#include <filesystem>

#include <unistd.h>

#include "base/progress.h"
#include "base/units.h"
#include "command.h"
#include "jit/build_farm.h"
#include "jit/cache.h"
#include "jit/nvrtc.h"
#include "planned_model.h"

namespace plait::app {
namespace {

// Into one cache, what all ranks of all hosts can run.
Status compile(const Settings& settings) {
  const std::filesystem::path directory = settings.compile.cache_dir.empty()
                                              ? jit::default_cache_directory()
                                              : std::filesystem::path(settings.compile.cache_dir);
  if (directory.empty()) return invalid("--cache-dir is missing, and neither XDG_CACHE_HOME nor HOME is set");
  PLAIT_ASSIGN_OR_RETURN(const PlannedModel model, plan_model(settings));
  PLAIT_ASSIGN_OR_RETURN(const ManifestQuestion question, manifest_question(model, settings));
  PLAIT_ASSIGN_OR_RETURN(const std::vector<RankKernels> ranks, kernels_of_ranks(model.config, question));
  const std::vector<jit::KernelManifest> all[] = {{merge_manifests(ranks)}};
  PLAIT_ASSIGN_OR_RETURN(const auto compiler, jit::load_nvrtc());

  // A server goes on without a directory; this command has no other purpose.
  std::error_code why;
  std::filesystem::create_directories(directory, why);
  if (why || access(directory.c_str(), W_OK) != 0)
    return io_error(fmt::format("--cache-dir {} cannot be written", directory.string()), why ? why.value() : errno);

  jit::KernelCache cache({.directory = directory});
  ProgressBar bar("Building kernels", ProgressBar::standard_error(), ProgressBar::Unit::kCount);
  jit::BuildFarm farm(cache, *compiler, /*link=*/nullptr,
                      {.cores = settings.engine().threads, .progress = [&](const jit::FarmProgress& progress) {
                         bar.update(progress.done, progress.total, progress.fraction);
                       }});
  PLAIT_ASSIGN_OR_RETURN(const jit::FarmReport report, farm.build(all));
  if (const uint64_t unwritten = cache.counters().unpublished; unwritten > 0)
    return unavailable(
        fmt::format("{} of {} kernels could not be written to {}", unwritten, report.kernels, directory.string()));
  fmt::print("{} kernels for {} are in {}: {} were there, {} were built in {} ({} of one core{})\n", report.kernels,
             question.architecture, directory.string(), report.from_cache, report.built, format_seconds(report.seconds),
             format_seconds(report.compile_seconds),
             report.slowest.empty()
                 ? ""
                 : fmt::format("; slowest {}, {}", report.slowest, format_seconds(report.slowest_seconds)));
  return {};
}

}  // namespace

int run_compile(const Settings& settings) {
  const Status status = compile(settings);
  if (status.has_value()) return kExitSuccess;
  fmt::print(stderr, "plait compile: {}\n", status.error().message);
  return kExitFailure;
}

}  // namespace plait::app
