#include <random>

#include "base/progress.h"
#include "base/units.h"
#include "bench/kernel_bench.h"
#include "bench/kernel_machine.h"
#include "engine/kernel_build.h"
#include "kernels/cuda/gemm_tuner.h"

namespace plait {
namespace {

constexpr int64_t kMostTunedRows = 32768;
constexpr TimerOptions kTiming{.batches = 5, .batch_seconds = 1.5e-3};

// The table that is there, to go on with it; an empty one where there is none, or one of other kernels.
Result<cuda::GemmTable> table_to_begin_with(const std::filesystem::path& file, const KernelMachine& machine) {
  std::error_code ignored;
  cuda::GemmTable fresh{
      .device = machine.model.name, .gpu = machine.device->properties().name, .compiler = machine.compiler_text()};
  if (!std::filesystem::exists(file, ignored)) return fresh;
  auto known = read_gemm_table(file, machine.model);
  if (known.has_value()) return known;
  if (known.error().kind != ErrorKind::kUnsupported)
    return std::move(known).error().within("--output would be written over, and is no table to go on with");
  fmt::print(stderr, "{}: begun anew\n", known.error().message);
  return fresh;
}

void print(const cuda::TuneReport& report, const cuda::GemmTable& table, const std::filesystem::path& file,
           BenchOptions::Format format) {
  if (format == BenchOptions::Format::kJson) {
    fmt::print(R"({{"file": "{}", "device": "{}", "classes_kept": {}, "classes_tuned": {}, "classes_left": {}, )"
               R"("kernels_timed": {}, "mean_regret": {:.4f}, "worst_regret": {:.4f}}})"
               "\n",
               file.string(), table.device, report.kept, report.tuned, report.left, report.timed, report.mean_regret,
               report.worst_regret);
    return;
  }
  fmt::print(
      "{}: {} products of {}; {} classes of rows tuned with {} times, {} were there, {} left to the cost model\n",
      file.string(), table.products.size(), table.gpu, report.tuned, report.timed, report.kept, report.left);
  fmt::print("the cost model's choices take {:.3f} of the best times on average, {:.3f} at most\n", report.mean_regret,
             report.worst_regret);
}

}  // namespace

Status tune_kernels(const KernelQuestion& question, const BenchOptions& options) {
  TimerOptions timing = kTiming;
  timing.seed = std::random_device()();
  PLAIT_ASSIGN_OR_RETURN(KernelMachine machine, open_kernel_machine(kernel_cache_directory(question.options), timing));
  const std::filesystem::path file =
      options.output.empty() ? default_gemm_table_file(machine.model) : std::filesystem::path(options.output);
  if (file.empty()) return invalid("--output is missing, and neither XDG_CACHE_HOME nor HOME is set");
  PLAIT_ASSIGN_OR_RETURN(cuda::GemmTable table, table_to_begin_with(file, machine));
  // A file that cannot be written is better known now.
  PLAIT_RETURN_IF_ERROR(write_gemm_table(file, table));

  ProgressBar bar("Tuning kernels", ProgressBar::standard_error(), ProgressBar::Unit::kCount);
  KernelTimer& timer = *machine.timer;
  std::optional<std::pair<cuda::GemmShape, int64_t>> laid_out;
  std::vector<std::string> unequal;
  const auto note_unequal = [&] { unequal.insert(unequal.end(), timer.unequal().begin(), timer.unequal().end()); };
  const cuda::TuneHooks hooks{
      .prepare =
          [&](std::span<const cuda::GemmKernel> kernels) {
            std::vector<jit::KernelSource> sources;
            for (const cuda::GemmKernel& kernel : kernels) sources.push_back(source_of(kernel));
            return timer.prepare(sources);
          },
      .time = [&](const cuda::GemmKernel& kernel, int64_t rows) -> Result<double> {
        if (laid_out != std::pair(kernel.shape, rows)) {
          note_unequal();
          PLAIT_RETURN_IF_ERROR(timer.begin(kernel.shape, rows, /*room=*/0));
          laid_out = {kernel.shape, rows};
        }
        return timer.time(kernel);
      },
      .now_seconds =
          [] { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); },
      .save = [&](const cuda::GemmTable& made) { return write_gemm_table(file, made); },
      .progress = [&](const cuda::TuneProgress& progress) { bar.update(progress.done, progress.total); }};
  PLAIT_ASSIGN_OR_RETURN(const cuda::TuneReport report, tune(machine.model, tune_tasks(question.ranks, kMostTunedRows),
                                                             {.seconds = options.tune_seconds}, hooks, table));
  note_unequal();
  print(report, table, file, options.format);
  for (const std::string& name : unequal)
    fmt::print(stderr, "{}: other bits than kernels of the same summing order\n", name);
  for (const std::string& wrong : report.wrong) fmt::print(stderr, "WRONG, and left out: {}\n", wrong);
  if (!report.wrong.empty()) return corrupt(fmt::format("{} kernels gave wrong results", report.wrong.size()));
  if (!unequal.empty())
    return corrupt(fmt::format("{} kernels differ in bits from others of the same summing order", unequal.size()));
  return {};
}

}  // namespace plait
