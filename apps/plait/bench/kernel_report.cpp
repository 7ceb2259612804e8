#include "bench/kernel_report.h"

#include <cmath>

#include <boost/json/serialize.hpp>

#include "base/units.h"
#include "base/version.h"
#include "kernels/cuda/gemm_table.h"

namespace plait {
namespace {

std::string table_text(const cuda::DeviceModel& device) {
  if (device.table == nullptr) return "the cost model";
  return fmt::format("a table measured on {} with {}, then the cost model", device.table->gpu, device.table->compiler);
}

std::string figures(const KernelRow& row) {
  if (!row.wrong.empty()) return fmt::format("WRONG: {}", row.wrong);
  const std::string flops = row.flops > 0 ? fmt::format("{:.0f}", row.flops / row.seconds / 1e12) : "";
  return fmt::format("{:>9.2f} us{:>6} TFLOP/s{:>6.0f} GB/s{:>5.0f}%", row.seconds * 1e6, flops,
                     row.bytes / row.seconds / 1e9, 100 * row.share_of_ceiling());
}

boost::json::object to_json(const KernelRow& row) {
  boost::json::object object = {{"label", row.label}, {"operation", row.operation},         {"kernel", row.kernel},
                                {"rows", row.rows},   {"existing_rows", row.existing_rows}, {"chosen", row.chosen}};
  if (!row.wrong.empty()) {
    object["wrong"] = row.wrong;
    return object;
  }
  object["seconds"] = row.seconds;
  object["flops"] = row.flops / row.seconds;
  object["bytes_per_s"] = row.bytes / row.seconds;
  object["ceiling_seconds"] = row.ceiling_seconds;
  object["share_of_ceiling"] = row.share_of_ceiling();
  if (row.expected_seconds > 0) object["expected_seconds"] = row.expected_seconds;
  return object;
}

}  // namespace

void KernelReport::begin(const KernelRun& run) {
  const cuda::DeviceModel& device = run.device;
  document_ = {{"plait", version()},
               {"gpu", run.gpu.name},
               {"device", device.name},
               {"multiprocessors", device.multiprocessors},
               {"read_bandwidth_bytes_per_s", device.read_bandwidth},
               {"fp8_flops", device.fp8_flops},
               {"bf16_flops", device.bf16_flops},
               {"compiler", run.compiler},
               {"kernel_table", cuda::gemm_table_digest(device)},
               {"deterministic", device.deterministic},
               {"sizes", run.sizes},
               {"seed", run.seed}};
  if (format_ == BenchOptions::Format::kJson) return;
  fmt::print(out_, "gpu       {}, {} multiprocessors, second-level cache {}; {}\n", run.gpu.name,
             run.gpu.multiprocessors, format_bytes(static_cast<uint64_t>(run.gpu.l2_bytes)), run.compiler);
  fmt::print(out_, "ceilings  {} from memory, {:.0f} TFLOP/s FP8, {:.0f} TFLOP/s BF16 ({})\n",
             format_rate(device.read_bandwidth), device.fp8_flops / 1e12, device.bf16_flops / 1e12, device.name);
  fmt::print(out_, "chosen    by {}{}\n", table_text(device), device.deterministic ? "; deterministic" : "");
  fmt::print(out_, "sizes     {}; operands of seed {}\n", run.sizes, run.seed);
  std::fflush(out_);
}

void KernelReport::row(const KernelRow& row) {
  const std::string label = fmt::format("{}: {}", row.label, row.operation);
  switch (format_) {
    case BenchOptions::Format::kTable:
      if (label != label_) fmt::print(out_, "\n{}\n", label);
      fmt::print(out_, "{:>9} rows{} {}  {}\n", row.rows, figures(row), row.chosen ? '*' : ' ', row.kernel);
      break;
    case BenchOptions::Format::kLines:
      fmt::print(out_, "{}, {} rows:{}, {}{}\n", label, row.rows, figures(row), row.kernel,
                 row.chosen ? " (chosen)" : "");
      break;
    case BenchOptions::Format::kJson:
      rows_.push_back(to_json(row));
      break;
  }
  label_ = label;
  std::fflush(out_);
}

void KernelReport::best(const KernelRow& row, double chosen_seconds) {
  const double regret = chosen_seconds / row.seconds;
  if (chosen_seconds > 0) {
    log_regrets_ += std::log(regret);
    ++regrets_;
  }
  if (format_ == BenchOptions::Format::kJson) {
    boost::json::object object = to_json(row);
    if (chosen_seconds > 0) object["regret"] = regret;
    bests_.push_back(std::move(object));
    return;
  }
  fmt::print(out_, "{:>9} rows{} BEST {}{}\n", row.rows, figures(row), row.kernel,
             chosen_seconds > 0 ? fmt::format("; regret {:.3f}", regret) : "");
  std::fflush(out_);
}

void KernelReport::note(const std::string& text) {
  notes_.emplace_back(text);
  if (format_ != BenchOptions::Format::kJson) fmt::print(out_, "  {}\n", text);
}

void KernelReport::finish(size_t compared) {
  const double mean = regrets_ > 0 ? std::exp(log_regrets_ / static_cast<double>(regrets_)) : 1;
  if (format_ == BenchOptions::Format::kJson) {
    document_["rows"] = rows_;
    document_["notes"] = notes_;
    document_["kernels_compared_in_bits"] = compared;
    if (regrets_ > 0) {
      document_["best"] = bests_;
      document_["mean_regret"] = mean;
    }
    fmt::print(out_, "{}\n", boost::json::serialize(document_));
    return;
  }
  if (regrets_ > 0) fmt::print(out_, "\nregret (chosen / best), geometric mean of {}: {:.3f}\n", regrets_, mean);
  if (compared > 0)
    fmt::print(out_, "{} kernels compared in bits with others of their summing order: {} differ\n", compared,
               notes_.size());
}

}  // namespace plait
