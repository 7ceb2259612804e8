#include "bench/report.h"

#include <boost/json/serialize.hpp>

#include "base/units.h"
#include "base/version.h"

namespace plait {
namespace {

const char* name_of(BenchRow::Phase phase) {
  return phase == BenchRow::Phase::kPrefill ? "prefill" : "decode";
}

std::string gflops(double flops) {
  return fmt::format("{:.0f} GFLOP/s", flops / 1e9);
}

boost::json::object to_json(const MachineProfile& machine) {
  return {{"cpu", machine.cpu},
          {"threads", machine.threads},
          {"last_level_cache_bytes", machine.last_level_cache_bytes},
          {"read_bandwidth_bytes_per_s", machine.read_bandwidth},
          {"f32_flops", machine.f32_flops},
          {"f32_instruction", machine.f32_instruction},
          {"bf16_flops", machine.bf16_flops},
          {"bf16_instruction", machine.bf16_instruction}};
}

boost::json::object to_json(const BenchRow& row, const std::string& model) {
  boost::json::object object = {{"model", model},
                                {"phase", name_of(row.phase)},
                                {"batch", row.batch},
                                {"context_tokens", row.context_tokens},
                                {"step_tokens", row.tokens}};
  if (!row.skipped.empty()) {
    object["skipped"] = row.skipped;
    return object;
  }
  object["steps"] = row.steps;
  object["step_seconds"] = row.seconds;
  object["tokens_per_s"] = row.tokens_per_second();
  object["weight_bytes"] = row.cost.total().weight_bytes;
  object["kv_bytes"] = row.cost.total().kv_bytes;
  object["distinct_experts"] = row.distinct_experts;
  object["bytes_per_s"] = row.bandwidth();
  object["read_bandwidth_bytes_per_s"] = row.ceilings.read_bandwidth;
  object["share_of_read_bandwidth"] = row.share_of_memory();
  object["flops"] = row.flop_rate();
  object["peak_flops"] = row.ceilings.flops;
  object["share_of_peak"] = row.share_of_peak();
  object["share_of_limit"] = row.share_of_limit();
  return object;
}

}  // namespace

void BenchReport::machine(const MachineProfile& profile) {
  document_["plait"] = version();
  document_["machine"] = to_json(profile);
  if (format_ == BenchOptions::Format::kJson) return;
  fmt::print(out_, "machine   {}, {} threads, last-level cache {}\n", profile.cpu, profile.threads,
             format_bytes(profile.last_level_cache_bytes));
  fmt::print(out_, "memory    {} read by all threads\n", format_rate(profile.read_bandwidth));
  fmt::print(out_, "float32   {} ({})\n", gflops(profile.f32_flops), profile.f32_instruction);
  fmt::print(out_, "bfloat16  {} ({})\n", gflops(profile.bf16_flops), profile.bf16_instruction);
  std::fflush(out_);
}

void BenchReport::begin_model(const std::string& name, size_t weight_bytes) {
  model_ = name;
  if (format_ != BenchOptions::Format::kTable) return;
  fmt::print(out_, "\n{}: {} of weights\n", name, format_bytes(weight_bytes));
  fmt::print(out_, "{:<8}{:>6}{:>9}{:>11}{:>11}{:>12}{:>12}{:>8}{:>10}{:>8}{:>9}\n", "phase", "batch", "context",
             "tok/s", "step", "touched", "GB/s", "of mem", "GFLOP/s", "of peak", "of limit");
  std::fflush(out_);
}

void BenchReport::row(const BenchRow& row) {
  switch (format_) {
    case BenchOptions::Format::kTable:
      table_row(row);
      break;
    case BenchOptions::Format::kLines:
      line(row);
      break;
    case BenchOptions::Format::kJson:
      rows_.push_back(to_json(row, model_));
      break;
  }
  std::fflush(out_);
}

void BenchReport::table_row(const BenchRow& row) {
  const int64_t context = row.phase == BenchRow::Phase::kPrefill ? row.tokens : row.context_tokens;
  fmt::print(out_, "{:<8}{:>6}{:>9}", name_of(row.phase), row.batch, context);
  if (!row.skipped.empty()) {
    fmt::print(out_, "  skipped: {}\n", row.skipped);
    return;
  }
  fmt::print(out_, "{:>11.1f}{:>11}{:>12}{:>12.2f}{:>7.0f}%{:>10.1f}{:>7.0f}%{:>8.0f}%\n", row.tokens_per_second(),
             format_seconds(row.seconds), format_bytes(static_cast<uint64_t>(row.bytes())), row.bandwidth() / 1e9,
             100 * row.share_of_memory(), row.flop_rate() / 1e9, 100 * row.share_of_peak(), 100 * row.share_of_limit());
}

void BenchReport::line(const BenchRow& row) {
  const int64_t context = row.phase == BenchRow::Phase::kPrefill ? row.tokens : row.context_tokens;
  fmt::print(out_, "{}: {} batch {} context {}: ", model_, name_of(row.phase), row.batch, context);
  if (!row.skipped.empty()) {
    fmt::print(out_, "skipped: {}\n", row.skipped);
    return;
  }
  fmt::print(out_,
             "{:.1f} tok/s, {:.2f} GB/s ({:.0f}% of memory), {:.0f} GFLOP/s ({:.0f}% of peak), {:.0f}% of limit\n",
             row.tokens_per_second(), row.bandwidth() / 1e9, 100 * row.share_of_memory(), row.flop_rate() / 1e9,
             100 * row.share_of_peak(), 100 * row.share_of_limit());
}

void BenchReport::finish() {
  if (format_ != BenchOptions::Format::kJson) return;
  document_["rows"] = rows_;
  fmt::print(out_, "{}\n", boost::json::serialize(document_));
}

}  // namespace plait
