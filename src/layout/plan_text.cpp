#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <fmt/ranges.h>

#include "layout/plan_print.h"

namespace plait {
namespace {

namespace json = boost::json;

// "0-2, 5"
std::string ranges(const std::vector<int64_t>& numbers) {
  std::vector<std::string> parts;
  for (size_t i = 0; i < numbers.size();) {
    size_t end = i;
    while (end + 1 < numbers.size() && numbers[end + 1] == numbers[end] + 1) ++end;
    parts.push_back(end == i ? fmt::format("{}", numbers[i]) : fmt::format("{}-{}", numbers[i], numbers[end]));
    i = end + 1;
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

std::string form_text(const Plan& plan) {
  return fmt::format("{} tokens per data-parallel rank, {} with logits, {}", plan.form.tokens, plan.form.logit_rows,
                     plan.form.context_parallel ? fmt::format("divided over {} context ranks ({})",
                                                              plan.config.attn_cp_size, name_of(plan.config.strategy()))
                                                : std::string("not divided over context ranks"));
}

std::string group_lists(const TokenAxes& axes, AxisSet along) {
  std::string text;
  for (int rank = 0; rank < axes.ranks(); ++rank) {
    const std::vector<int> group = axes.group(along, rank);
    if (group.front() == rank) text += fmt::format("{{{}}}", fmt::join(group, ","));
  }
  return text;
}

// A line: mark, what, with whom, bytes, and where rows are afterwards.
std::string line(const char* mark, const std::string& what, const std::string& group, const std::string& bytes,
                 const std::string& where) {
  return fmt::format("  {:<2} {:<28} {:<16} {:>10}  {}\n", mark, what, group, bytes, where);
}

std::string collective_line(const Plan& plan, const Collective& collective, const std::string& what) {
  std::string notes;
  if (collective.uneven) notes += "; sizes vary in SUM_LEN steps";
  if (collective.reorder) notes += "; rows move locally too";
  const bool local = collective.kind == CollectiveKind::kSlice;
  return line(local ? "-" : "*", what + (collective.payload == Payload::kResidual ? " of the residual" : ""),
              plan.axes.group_name(collective.axes),
              local ? "local" : format_token_bytes(bytes_per_token(plan, collective)),
              describe(plan.axes, collective.after) + notes);
}

std::string stage_lines(const Plan& plan, const StageStep& step) {
  std::string text = line("", name_of(step.stage.kind), "", "", describe(plan.axes, step.out));
  if (step.stage.kind == StageKind::kSendReceive)
    text =
        line("*", "send_receive", "pp", format_token_bytes(bytes_per_token(plan, step)), describe(plan.axes, step.out));
  for (const StageTraffic& traffic : step.stage.inside)
    text += line("*", fmt::format("  {}: {}", name_of(traffic.kind), traffic.what), plan.axes.group_name(traffic.axes),
                 format_token_bytes(bytes_per_token(plan, traffic, step.in.layout)),
                 traffic.of_history ? "inside, for each cached token" : "inside");
  return text;
}

std::string step_lines(const Plan& plan, const PlanStep& step) {
  if (const auto* collective = std::get_if<Collective>(&step))
    return collective_line(plan, *collective, name_of(collective->kind));
  if (const auto* fused = std::get_if<FusedAllReduceAddNorm>(&step))
    return collective_line(plan, fused->all_reduce, "all_reduce + add + norm");
  return stage_lines(plan, std::get<StageStep>(step));
}

json::object to_object(const Plan& plan, const Collective& collective) {
  return {{"collective", name_of(collective.kind)},
          {"of", collective.payload == Payload::kDelta ? "delta" : "residual"},
          {"group", plan.axes.group_name(collective.axes)},
          {"ranks", plan.axes.width(collective.axes)},
          {"row_bytes", collective.row_bytes},
          {"bytes_per_token", bytes_per_token(plan, collective)},
          {"uneven", collective.uneven},
          {"reorder", collective.reorder},
          {"before", describe(plan.axes, collective.before)},
          {"after", describe(plan.axes, collective.after)}};
}

json::object to_object(const Plan& plan, const StageStep& step) {
  json::object object{{"stage", name_of(step.stage.kind)},
                      {"in", describe(plan.axes, step.in)},
                      {"out", describe(plan.axes, step.out)}};
  if (step.residual) object["residual"] = describe(plan.axes, *step.residual);
  if (step.stage.kind == StageKind::kSendReceive) object["bytes_per_token"] = bytes_per_token(plan, step);
  json::array inside;
  for (const StageTraffic& traffic : step.stage.inside)
    inside.push_back(json::object{{"what", traffic.what},
                                  {"collective", name_of(traffic.kind)},
                                  {"group", plan.axes.group_name(traffic.axes)},
                                  {"ranks", plan.axes.width(traffic.axes)},
                                  {traffic.of_history ? "bytes_per_cached_token" : "bytes_per_token",
                                   bytes_per_token(plan, traffic, step.in.layout)}});
  if (!inside.empty()) object["inside"] = std::move(inside);
  return object;
}

json::object to_object(const Plan& plan, const PlanStep& step) {
  if (const auto* collective = std::get_if<Collective>(&step)) return to_object(plan, *collective);
  if (const auto* stage = std::get_if<StageStep>(&step)) return to_object(plan, *stage);
  const auto& fused = std::get<FusedAllReduceAddNorm>(step);
  return {{"fused", json::array{to_object(plan, fused.all_reduce), to_object(plan, fused.add_norm)}}};
}

}  // namespace

std::string format_token_bytes(double bytes) {
  if (bytes < 1024) return fmt::format("{:.0f} B", bytes);
  if (bytes < 1024 * 1024) return fmt::format("{:.1f} KiB", bytes / 1024);
  return fmt::format("{:.1f} MiB", bytes / 1024 / 1024);
}

std::vector<SegmentUse> segment_uses(const Plan& plan) {
  std::vector<SegmentUse> uses;
  for (const ScheduledSegment& at : plan.order) {
    auto use = std::find_if(uses.begin(), uses.end(), [&](const SegmentUse& u) { return u.segment == at.segment; });
    if (use == uses.end()) use = uses.insert(uses.end(), {at.segment, {}, 0});
    ++use->times;
    if (at.layer >= 0) use->layers.push_back(at.layer);
  }
  return uses;
}

std::string describe(const Plan& plan, const SegmentUse& use) {
  const char* kind = name_of(plan.segments[use.segment].kind);
  if (!use.layers.empty())
    return fmt::format("{} {}: {}", use.layers.size() == 1 ? "layer" : "layers", ranges(use.layers), kind);
  return use.times == 1 ? kind : fmt::format("{}, {} times", kind, use.times);
}

std::string to_text(const Plan& plan) {
  std::string text = fmt::format("{}\n{}\n", to_flags(plan.config), form_text(plan));
  text += fmt::format("padded rows of a data-parallel rank are multiples of {}\n\n", plan.alignment().value());
  text += "groups inside a stage\n";
  for (const AxisSet& along : plan.groups())
    text += fmt::format("  {:<16} {}\n", plan.axes.group_name(along), group_lists(plan.axes, along));
  text += "\nbytes: what each rank sends per token (head: per row with logits)\n";
  for (const SegmentUse& use : segment_uses(plan)) {
    const Segment& segment = plan.segments[use.segment];
    text += fmt::format("\n{}\n", describe(plan, use));
    for (const PlanStep& step : segment.steps) text += step_lines(plan, step);
  }
  return text;
}

std::string to_json(const Plan& plan) {
  json::object object{{"flags", to_flags(plan.config)},
                      {"tokens", plan.form.tokens},
                      {"logit_rows", plan.form.logit_rows},
                      {"context_parallel", plan.form.context_parallel},
                      {"row_alignment", plan.alignment().value()},
                      {"seconds", plan.seconds}};
  json::array groups, segments;
  for (const AxisSet& along : plan.groups())
    groups.push_back(json::object{{"name", plan.axes.group_name(along)}, {"lists", group_lists(plan.axes, along)}});
  for (const SegmentUse& use : segment_uses(plan)) {
    json::array steps, layers;
    for (const PlanStep& step : plan.segments[use.segment].steps) steps.push_back(to_object(plan, step));
    for (const int64_t layer : use.layers) layers.push_back(layer);
    segments.push_back(json::object{{"kind", name_of(plan.segments[use.segment].kind)},
                                    {"times", use.times},
                                    {"layers", std::move(layers)},
                                    {"steps", std::move(steps)}});
  }
  object["groups"] = std::move(groups);
  object["segments"] = std::move(segments);
  return json::serialize(object);
}

}  // namespace plait
