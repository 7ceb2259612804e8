#include "plan_kernels.h"

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <fmt/ranges.h>

#include "engine/kernel_manifest.h"

namespace plait::app {
namespace {

namespace json = boost::json;

double seconds_of(const jit::KernelManifest& manifest) {
  double seconds = 0;
  for (const jit::ManifestEntry& entry : manifest.kernels) seconds += entry.compile_seconds;
  return seconds;
}

std::string totals(const jit::KernelManifest& manifest) {
  return fmt::format("{} kernels, about {:.1f} s to compile on one core", manifest.kernels.size(),
                     seconds_of(manifest));
}

// "ranks 0-7"
std::string describe(const std::vector<int>& ranks) {
  if (ranks.size() == 1) return fmt::format("rank {}", ranks.front());
  const bool run = ranks.back() - ranks.front() == static_cast<int>(ranks.size()) - 1;
  return run ? fmt::format("ranks {}-{}", ranks.front(), ranks.back())
             : fmt::format("ranks {}", fmt::join(ranks, ", "));
}

std::string table(const jit::KernelManifest& manifest) {
  size_t width = 0;
  for (const jit::ManifestEntry& entry : manifest.kernels) width = std::max(width, entry.source.name.size());
  std::string text;
  for (const jit::ManifestEntry& entry : manifest.kernels) {
    text += fmt::format("  {:<{}}  {:.2f} s", entry.source.name, width, entry.compile_seconds);
    for (size_t i = 0; i < entry.calls.size(); ++i)
      text +=
          i == 0 ? fmt::format("  {}\n", entry.calls[i]) : fmt::format("  {:<{}}  {}\n", "", width + 8, entry.calls[i]);
  }
  return text;
}

std::string limits_text(const ManifestQuestion& question) {
  const CallLimits& limits = question.limits;
  const char* steps = limits.mode == DisaggregationMode::kPrefill  ? "; steps that read prompts only"
                      : limits.mode == DisaggregationMode::kDecode ? "; steps that decode only"
                                                                   : "";
  return fmt::format("up to {} prompt tokens and {} requests in a step{}", limits.chunked_prefill_tokens,
                     limits.max_running_requests, steps);
}

std::string to_text(const ManifestQuestion& question, const std::vector<RankKernels>& all) {
  std::string text =
      fmt::format("{}\n{} ({} multiprocessors), {}; {}\n", to_flags(question.parallel), question.device.name,
                  question.device.multiprocessors, question.architecture, limits_text(question));
  for (const RankKernels& each : all)
    text += fmt::format("\n{} (stage {}): {}\n{}", describe(each.ranks), each.pipeline_stage, totals(each.manifest),
                        table(each.manifest));
  return text + fmt::format("\nall ranks: {}\n", totals(merge_manifests(all)));
}

json::object to_object(const jit::ManifestEntry& entry) {
  json::object constants;
  for (const auto& [name, value] : entry.source.constants) constants[name] = value;
  return {{"name", entry.source.name},
          {"entry", entry.source.entry},
          {"constants", std::move(constants)},
          {"compile_seconds", entry.compile_seconds},
          {"calls", json::array(entry.calls.begin(), entry.calls.end())}};
}

std::string to_json(const ManifestQuestion& question, const std::vector<RankKernels>& all) {
  json::array groups;
  for (const RankKernels& each : all) {
    json::array kernels;
    for (const jit::ManifestEntry& entry : each.manifest.kernels) kernels.push_back(to_object(entry));
    groups.push_back(json::object{{"ranks", json::array(each.ranks.begin(), each.ranks.end())},
                                  {"stage", each.pipeline_stage},
                                  {"compile_seconds", seconds_of(each.manifest)},
                                  {"kernels", std::move(kernels)}});
  }
  const jit::KernelManifest merged = merge_manifests(all);
  return json::serialize(json::object{{"flags", to_flags(question.parallel)},
                                      {"device", question.device.name},
                                      {"architecture", question.architecture},
                                      {"disaggregation_mode", name_of(question.limits.mode)},
                                      {"chunked_prefill_size", question.limits.chunked_prefill_tokens},
                                      {"max_running_requests", question.limits.max_running_requests},
                                      {"groups", std::move(groups)},
                                      {"kernels", merged.kernels.size()},
                                      {"compile_seconds", seconds_of(merged)}});
}

}  // namespace

Status print_kernels(const PlannedModel& model, const Settings& settings) {
  const PlanOptions& plan = settings.plan;
  if (!plan.svg.empty()) return invalid("--svg draws what ranks exchange; leave --kernels out, or --svg");
  PLAIT_ASSIGN_OR_RETURN(const ManifestQuestion question, kernel_question(model, settings));
  PLAIT_ASSIGN_OR_RETURN(const std::vector<RankKernels> all, kernels_of_ranks(model.config, question));
  fmt::print("{}{}", plan.json ? to_json(question, all) : to_text(question, all), plan.json ? "\n" : "");
  return {};
}

}  // namespace plait::app
