#include <cerrno>
#include <cstdio>
#include <filesystem>

#include <unistd.h>

#include "base/progress.h"
#include "base/units.h"
#include "command.h"
#include "engine/kernel_build.h"
#include "jit/nvrtc.h"
#include "planned_model.h"

namespace plait::app {
namespace {

// A server goes on without a directory; this command has no other purpose.
Status check_writable(const std::filesystem::path& directory) {
  if (directory.empty()) return invalid("--kernel-cache-dir is missing, and neither XDG_CACHE_HOME nor HOME is set");
  std::error_code why;
  std::filesystem::create_directories(directory, why);
  if (!why && access(directory.c_str(), W_OK) == 0) return {};
  return io_error(fmt::format("--kernel-cache-dir {} cannot be written", directory.string()),
                  why ? why.value() : errno);
}

Result<jit::FarmReport> build(const std::vector<RankKernels>& ranks, jit::KernelCache& cache, int cores) {
  PLAIT_ASSIGN_OR_RETURN(const auto compiler, jit::load_nvrtc());
  const std::vector<jit::KernelManifest> all[] = {{merge_manifests(ranks)}};
  ProgressBar bar("Building kernels", ProgressBar::standard_error(), ProgressBar::Unit::kCount);
  jit::BuildFarm farm(cache, *compiler, /*link=*/nullptr,
                      {.cores = cores, .progress = [&](const jit::FarmProgress& progress) {
                         bar.update(progress.done, progress.total, progress.fraction);
                       }});
  return farm.build(all);
}

// Into one cache, what all ranks of all hosts can run.
Status compile(const Settings& settings) {
  PLAIT_ASSIGN_OR_RETURN(const PlannedModel model, plan_model(settings));
  PLAIT_ASSIGN_OR_RETURN(const ManifestQuestion question, kernel_question(model, settings));
  PLAIT_ASSIGN_OR_RETURN(const std::vector<RankKernels> ranks, kernels_of_ranks(model.config, question));
  const std::filesystem::path directory = kernel_cache_directory(settings.engine());
  PLAIT_RETURN_IF_ERROR(check_writable(directory));
  jit::KernelCache cache({.directory = directory});
  PLAIT_ASSIGN_OR_RETURN(const jit::FarmReport report, build(ranks, cache, settings.engine().threads));
  if (const uint64_t unwritten = cache.counters().unpublished; unwritten > 0)
    return unavailable(
        fmt::format("{} of {} kernels could not be written to {}", unwritten, report.kernels, directory.string()));
  fmt::print("{} kernels for {} are in {}: {} were there, {} were built in {}", report.kernels, question.architecture,
             directory.string(), report.from_cache, report.built, format_seconds(report.seconds));
  if (report.built > 0)
    fmt::print(" ({} of one core; slowest {}, {})", format_seconds(report.compile_seconds), report.slowest,
               format_seconds(report.slowest_seconds));
  const uint64_t elsewhere = report.kernels - report.from_cache - report.built;
  fmt::print("{}\n", elsewhere > 0 ? fmt::format(", {} by other processes meanwhile", elsewhere) : "");
  return {};
}

}  // namespace

int run_compile(const Settings& settings) {
  return exit_status("compile", compile(settings));
}

}  // namespace plait::app
