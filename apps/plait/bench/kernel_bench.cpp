#include "bench/kernel_bench.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "base/units.h"
#include "bench/kernel_machine.h"
#include "bench/kernel_report.h"
#include "engine/kernel_build.h"
#include "kernels/cuda/gemm_chooser.h"

namespace plait {
namespace {

using cuda::GemmKernel;
using cuda::GemmShape;
using cuda::QuantizeShape;

// Which of a product's kernels are timed: the chosen one, or all, less what --only leaves out.
struct Selection {
  bool all = false;
  std::string only;

  bool takes(const std::string& text) const { return text.find(only) != std::string::npos; }
};

class KernelBench {
 public:
  KernelBench(KernelMachine& machine, const cuda::DeviceModel& chooser, const BenchOptions& options,
              KernelReport& report)
      : machine_(machine), chooser_(chooser), selection_{options.all_kernels, options.only_kernels}, report_(report) {}

  // Compiles first, all at once: with every core at work there.
  Status prepare(std::span<const KernelCase> cases) {
    std::vector<jit::KernelSource> sources;
    for (const KernelCase& each : cases)
      for (const int64_t rows : each.rows) {
        if (const auto* shape = std::get_if<GemmShape>(&each.operation)) {
          for (const GemmKernel& kernel : kernels_of(each, *shape, rows)) sources.push_back(source_of(kernel));
        } else if (const auto& quantize = std::get<QuantizeShape>(each.operation); takes(each, name_of(quantize))) {
          sources.push_back(quantize_source(quantize));
        }
      }
    return machine_.timer->prepare(sources);
  }

  Status run(const KernelCase& each) {
    for (const int64_t rows : each.rows) {
      const auto* shape = std::get_if<GemmShape>(&each.operation);
      PLAIT_RETURN_IF_ERROR(shape != nullptr ? run_product(each, *shape, rows)
                                             : run_quantise(each, std::get<QuantizeShape>(each.operation), rows));
    }
    return {};
  }

  Status verdict() const {
    if (wrong_ > 0) return corrupt(fmt::format("{} kernels gave wrong results", wrong_));
    if (unequal_ > 0)
      return corrupt(fmt::format("{} kernels differ in bits from others of the same summing order", unequal_));
    return {};
  }

 private:
  bool takes(const KernelCase& each, const std::string& name) const {
    return selection_.takes(each.label) || selection_.takes(name);
  }

  // The chosen one first.
  std::vector<GemmKernel> kernels_of(const KernelCase& each, const GemmShape& shape, int64_t rows) const {
    std::vector<GemmKernel> kernels = {choose_gemm(chooser_, shape, rows)};
    if (selection_.all)
      for (const GemmKernel& kernel : all_candidates(chooser_, shape, cuda::rows_class(rows)))
        if (kernel != kernels.front()) kernels.push_back(kernel);
    // --only names a product, or some kernels of it.
    if (!takes(each, describe(shape)))
      std::erase_if(kernels, [&](const GemmKernel& kernel) { return !selection_.takes(name_of(kernel)); });
    return kernels;
  }

  Status run_product(const KernelCase& each, const GemmShape& shape, int64_t rows) {
    const std::vector<GemmKernel> kernels = kernels_of(each, shape, rows);
    if (kernels.empty()) return {};
    const GemmKernel chosen = choose_gemm(chooser_, shape, rows);
    PLAIT_RETURN_IF_ERROR(machine_.timer->begin(shape, rows, each.room));
    KernelRow row = row_of(each, shape, rows);
    std::optional<KernelRow> best;
    chosen_seconds_ = 0;
    for (const GemmKernel& kernel : kernels) {
      row.kernel = name_of(kernel);
      row.expected_seconds = expected_seconds(chooser_, kernel, rows);
      row.chosen = kernel == chosen;
      auto seconds = machine_.timer->time(kernel);
      PLAIT_RETURN_IF_ERROR(enter(seconds, row));
      report_.row(row);
      if (row.wrong.empty() && (!best || row.seconds < best->seconds)) best = row;
      if (row.chosen) chosen_seconds_ = row.wrong.empty() ? row.seconds : 0;
    }
    for (const std::string& name : machine_.timer->unequal())
      report_.note(fmt::format("{}: other bits than kernels of the same summing order", name));
    unequal_ += machine_.timer->unequal().size();
    if (selection_.all && best) report_.best(*best, chosen_seconds_);
    return {};
  }

  KernelRow row_of(const KernelCase& each, const GemmShape& shape, int64_t rows) const {
    const RowLayout& layout = machine_.timer->layout();
    const auto n = static_cast<double>(shape.n), k = static_cast<double>(shape.k),
               count = static_cast<double>(layout.existing), element = static_cast<double>(element_bytes(shape.format));
    const double peak = shape.format == cuda::GemmFormat::kFp8 ? machine_.model.fp8_flops : machine_.model.bf16_flops;
    KernelRow row{.label = each.label, .operation = describe(shape), .rows = rows, .existing_rows = layout.existing};
    row.flops = 2 * count * n * k;
    row.bytes = count * k * element + layout.matrices * n * k * element +
                count * n * static_cast<double>(element_bytes(shape.result));
    row.ceiling_seconds = std::max(row.flops / peak, row.bytes / machine_.model.read_bandwidth);
    return row;
  }

  Status run_quantise(const KernelCase& each, const QuantizeShape& shape, int64_t rows) {
    if (!takes(each, name_of(shape))) return {};
    auto seconds = machine_.timer->time(shape, rows, each.room);
    const int64_t count = machine_.timer->layout().existing;
    KernelRow row{.label = each.label,
                  .operation = name_of(shape),
                  .kernel = name_of(shape),
                  .rows = rows,
                  .existing_rows = count,
                  .chosen = true};
    // In, out, and a scale for 128.
    row.bytes = static_cast<double>(count * shape.k) * ((shape.gated ? 4 : 2) + 1 + 4.0 / 128);
    row.ceiling_seconds = row.bytes / machine_.model.read_bandwidth;
    PLAIT_RETURN_IF_ERROR(enter(seconds, row));
    report_.row(row);
    return {};
  }

  // A wrong kernel is said and counted, and the others are measured.
  Status enter(Result<double>& seconds, KernelRow& row) {
    row.seconds = 0;
    row.wrong.clear();
    if (seconds.has_value()) {
      row.seconds = *seconds;
      return {};
    }
    if (seconds.error().kind != ErrorKind::kCorrupt) return std::move(seconds).error().within(row.kernel);
    row.wrong = seconds.error().message;
    ++wrong_;
    return {};
  }

  KernelMachine& machine_;
  const cuda::DeviceModel& chooser_;
  const Selection selection_;
  KernelReport& report_;
  double chosen_seconds_ = 0;
  size_t wrong_ = 0, unequal_ = 0;
};

std::vector<KernelCase> cases_of(const KernelQuestion& question, const BenchOptions& options) {
  if (!options.deepgemm_sizes) return model_cases(question.ranks, options.kernel_rows);
  std::vector<KernelCase> cases;
  for (const BenchOptions::WeightKind weights : options.weights)
    for (KernelCase& each :
         deepgemm_cases(weights == BenchOptions::WeightKind::kFP8 ? cuda::GemmFormat::kFp8 : cuda::GemmFormat::kBf16,
                        options.kernel_rows))
      cases.push_back(std::move(each));
  return cases;
}

}  // namespace

Status bench_kernels(const KernelQuestion& question, const BenchOptions& options) {
  const TimerOptions timing{.seed = std::random_device()()};
  PLAIT_ASSIGN_OR_RETURN(KernelMachine machine, open_kernel_machine(kernel_cache_directory(question.options), timing));
  cuda::DeviceModel chooser = machine.model;
  PLAIT_RETURN_IF_ERROR(choose_kernels_by(question.options, chooser));

  KernelReport report(options.format, stdout);
  report.begin({.gpu = machine.device->properties(),
                .device = chooser,
                .compiler = machine.compiler_text(),
                .sizes = options.deepgemm_sizes ? "DeepGEMM's sizes" : question.model,
                .seed = timing.seed});
  KernelBench bench(machine, chooser, options, report);
  const std::vector<KernelCase> cases = cases_of(question, options);
  PLAIT_RETURN_IF_ERROR(bench.prepare(cases));
  for (const KernelCase& each : cases) PLAIT_RETURN_IF_ERROR(bench.run(each));
  report.finish(machine.timer->compared());
  return bench.verdict();
}

}  // namespace plait
