#include <fmt/format.h>

#include "layout/plan_print.h"
#include "layout/row_order.h"

namespace plait {
namespace {

constexpr int kMostLanes = 16;
constexpr int kLabelWidth = 150, kNoteWidth = 290, kMargin = 24;
constexpr int kStageHeight = 38, kGroupLine = 9, kHeadingHeight = 40;

std::string escaped(std::string_view text) {
  std::string safe;
  for (const char c : text) safe += c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '&' ? "&amp;" : std::string(1, c);
  return safe;
}

// Draws downwards; `y_` is how far it is.
class Picture {
 public:
  explicit Picture(const Plan& plan)
      : plan_(plan),
        lanes_(std::min(plan.axes.ranks(), kMostLanes)),
        lane_width_(std::clamp(720 / lanes_, 64, 150)),
        pieces_(plan.axes.width(plan.divided - plan.axes.attn_dp())),
        blocks_(plan.axes, plan.divided,
                pad_rows(std::vector<int64_t>(plan.axes.width(plan.axes.attn_dp()), pieces_), {.shards = pieces_},
                         PaddingMode::kMaxLen)) {}

  std::string draw() {
    title();
    for (const SegmentUse& use : most_used()) segment(use);
    legend();
    return fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
        "font-family=\"system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\" font-size=\"12\">\n"
        "<defs><pattern id=\"owed\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" "
        "patternTransform=\"rotate(45)\"><rect width=\"3\" height=\"6\" fill=\"#fff\" "
        "opacity=\"0.62\"/></pattern></defs>\n"
        "<rect width=\"{0}\" height=\"{1}\" fill=\"#fff\"/>\n{2}</svg>\n",
        width(), y_, body_);
  }

 private:
  int width() const { return kMargin + kLabelWidth + lanes_ * lane_width_ + kNoteWidth + kMargin; }
  int lane_x(int rank) const { return kMargin + kLabelWidth + rank * lane_width_; }
  int lane_middle(int rank) const { return lane_x(rank) + lane_width_ / 2; }
  int notes_x() const { return lane_x(lanes_) + 14; }

  void text(int x, int y, std::string_view words, std::string_view style = "fill=\"#24292f\"") {
    body_ += fmt::format("<text x=\"{}\" y=\"{}\" {}>{}</text>\n", x, y, style, escaped(words));
  }

  void title() {
    text(kMargin, 34, to_flags(plan_.config), "fill=\"#24292f\" font-size=\"15\" font-weight=\"600\"");
    text(kMargin, 54,
         fmt::format("{} layers, {} tokens per data-parallel rank{}", plan_.facts.layers, plan_.form.tokens,
                     plan_.form.context_parallel ? ", divided over the context ranks" : ""),
         "fill=\"#57606a\"");
    for (int rank = 0; rank < lanes_; ++rank)
      text(lane_middle(rank), 82, fmt::format("rank {}", rank),
           "fill=\"#57606a\" font-weight=\"600\" text-anchor=\"middle\"");
    if (lanes_ < plan_.axes.ranks())
      text(notes_x(), 82, fmt::format("{} more ranks alike", plan_.axes.ranks() - lanes_), "fill=\"#57606a\"");
    y_ = 92;
  }

  // Of each kind the segment that most layers use.
  std::vector<SegmentUse> most_used() const {
    std::vector<SegmentUse> chosen;
    for (const SegmentUse& use : segment_uses(plan_)) {
      const auto same = std::find_if(chosen.begin(), chosen.end(), [&](const SegmentUse& other) {
        return plan_.segments[other.segment].kind == plan_.segments[use.segment].kind;
      });
      if (same == chosen.end())
        chosen.push_back(use);
      else if (use.times > same->times)
        *same = use;
    }
    return chosen;
  }

  void segment(const SegmentUse& use) {
    y_ += kHeadingHeight;
    body_ += fmt::format("<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" stroke=\"#d0d7de\"/>\n", kMargin, y_ - 24,
                         width() - kMargin, y_ - 24);
    text(kMargin, y_ - 6, describe(plan_, use), "fill=\"#24292f\" font-size=\"13\" font-weight=\"600\"");
    y_ += 6;
    for (const PlanStep& step : plan_.segments[use.segment].steps)
      std::visit([&](const auto& each) { perform(each); }, step);
  }

  void perform(const StageStep& step) {
    if (step.stage.kind == StageKind::kSendReceive) {
      moved("send_receive", "to the next stage", bytes_per_token(plan_, step), AxisSet{});
      return;
    }
    inside(step, /*after=*/false);
    std::optional<Layout> residual = step.residual;
    if (step.stage.kind == StageKind::kAddNorm) residual = step.out.layout;
    if (step.stage.kind == StageKind::kResidualAdd || step.stage.kind == StageKind::kSelectRows ||
        step.stage.kind == StageKind::kHead)
      residual.reset();
    stage(name_of(step.stage.kind), step.out, residual);
    inside(step, /*after=*/true);
    if (step.stage.kind == StageKind::kSelectRows) unit_ = "row with logits";
  }

  void inside(const StageStep& step, bool after) {
    for (const StageTraffic& traffic : step.stage.inside)
      if (traffic.after == after)
        moved(name_of(traffic.kind), fmt::format("{}, {}", traffic.what, plan_.axes.group_name(traffic.axes)),
              bytes_per_token(plan_, traffic, step.in.layout), traffic.axes);
  }

  void perform(const FusedAllReduceAddNorm& fused) {
    moved("all_reduce", plan_.axes.group_name(fused.all_reduce.axes) + ", fused with add + norm",
          bytes_per_token(plan_, fused.all_reduce), fused.all_reduce.axes);
    stage("add + norm", fused.add_norm.out, fused.add_norm.out.layout);
  }

  void perform(const Collective& collective) {
    const char* of = collective.payload == Payload::kResidual ? " of the residual" : "";
    if (collective.kind == CollectiveKind::kSlice) {
      text(notes_x(), y_ + 14, fmt::format("keep own rows{} (local)", of), "fill=\"#57606a\"");
      y_ += 20;
      return;
    }
    moved(name_of(collective.kind), plan_.axes.group_name(collective.axes) + of, bytes_per_token(plan_, collective),
          collective.axes);
  }

  void stage(std::string_view name, const Placement& rows, const std::optional<Layout>& residual) {
    text(kMargin, y_ + 22, name);
    for (int rank = 0; rank < lanes_; ++rank) {
      body_ += fmt::format(
          "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"6\" fill=\"#f6f8fa\" stroke=\"#d0d7de\"/>\n",
          lane_x(rank) + 4, y_ + 3, lane_width_ - 8, kStageHeight - 8);
      tokens(rank, rows.layout.sharded, !rows.owed.empty(), y_ + 8, 15);
      if (residual) tokens(rank, residual->sharded, false, y_ + 26, 4);
    }
    text(notes_x(), y_ + 22, rows.owed.empty() ? std::string() : "owes a sum over " + plan_.axes.group_name(rows.owed),
         "fill=\"#9a6700\"");
    y_ += kStageHeight;
  }

  // The rank's blocks at their places among all blocks of the step.
  void tokens(int rank, AxisSet sharded, bool owed, int y, int height) {
    const auto total = static_cast<double>(blocks_.rows().total());
    const double each = (lane_width_ - 20) / total;
    for (const RowRun& run : blocks_.held(rank, sharded))
      for (int64_t block = run.begin; block < run.begin + run.count; ++block) {
        const std::string place =
            fmt::format("x=\"{:.1f}\" y=\"{}\" width=\"{:.1f}\" height=\"{}\" rx=\"2\"",
                        lane_x(rank) + 10 + static_cast<double>(block) * each, y, std::max(1.0, each - 1), height);
        body_ += fmt::format("<rect {} fill=\"{}\"/>\n", place, colour(block));
        if (owed) body_ += fmt::format("<rect {} fill=\"url(#owed)\"/>\n", place);
      }
  }

  // Hue by data-parallel rank, lightness by piece.
  std::string colour(int64_t block) const {
    const int64_t dp = block / pieces_, piece = block % pieces_;
    const auto count = static_cast<int64_t>(blocks_.rows().begin.size());
    const int64_t hue = (212 + dp * 360 / count) % 360;
    const double light = pieces_ == 1 ? 48 : 36 + 34.0 * static_cast<double>(piece) / static_cast<double>(pieces_ - 1);
    return fmt::format("hsl({},62%,{:.0f}%)", hue, light);
  }

  // A line per group with a dot on each member, and what it costs.
  void moved(std::string_view what, const std::string& detail, double bytes, AxisSet along) {
    int line = 0;
    if (along.empty())
      for (int rank = 0; rank < lanes_; ++rank)
        body_ += fmt::format(
            "<path d=\"M{0} {1} v12 m-4 -5 l4 5 l4 -5\" stroke=\"#cf222e\" stroke-width=\"2\" fill=\"none\"/>\n",
            lane_middle(rank), y_ + 3);
    int reached = -1;  // groups that lie apart share a line
    for (int rank = 0; rank < lanes_ && !along.empty(); ++rank) {
      const std::vector<int> group = plan_.axes.group(along, rank);
      if (group.front() != rank) continue;
      if (rank <= reached) ++line;
      reached = std::max(reached, std::min(group.back(), lanes_ - 1));
      group_line(group, y_ + 10 + line * kGroupLine);
    }
    text(kMargin, y_ + 14, what, "fill=\"#cf222e\" font-weight=\"600\"");
    text(notes_x(), y_ + 14, fmt::format("{} per {} · {}", format_token_bytes(bytes), unit_, detail),
         "fill=\"#cf222e\"");
    y_ += 20 + line * kGroupLine;
  }

  void group_line(const std::vector<int>& group, int y) {
    int last = group.front();
    for (const int member : group)
      if (member < lanes_) last = member;
    body_ += fmt::format("<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" stroke=\"#cf222e\" stroke-width=\"2\"/>\n",
                         lane_middle(group.front()), y, lane_middle(last), y);
    for (const int member : group)
      if (member < lanes_)
        body_ += fmt::format("<circle cx=\"{}\" cy=\"{}\" r=\"3.5\" fill=\"#cf222e\"/>\n", lane_middle(member), y);
  }

  void legend() {
    y_ += 34;
    body_ += fmt::format("<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" stroke=\"#d0d7de\"/>\n", kMargin, y_ - 20,
                         width() - kMargin, y_ - 20);
    const auto block = [&](int x, int height, bool owed) {
      body_ += fmt::format("<rect x=\"{}\" y=\"{}\" width=\"18\" height=\"{}\" rx=\"2\" fill=\"{}\"/>\n", x,
                           y_ + 5 - height / 2, height, colour(0));
      if (owed)
        body_ += fmt::format("<rect x=\"{}\" y=\"{}\" width=\"18\" height=\"{}\" rx=\"2\" fill=\"url(#owed)\"/>\n", x,
                             y_ + 5 - height / 2, height);
    };
    block(kMargin, 15, false);
    text(kMargin + 26, y_ + 9, "tokens, complete", "fill=\"#57606a\"");
    block(kMargin + 150, 15, true);
    text(kMargin + 176, y_ + 9, "summands of a sum", "fill=\"#57606a\"");
    block(kMargin + 310, 4, false);
    text(kMargin + 336, y_ + 9, "residual", "fill=\"#57606a\"");
    text(kMargin, y_ + 30,
         "Hue: data-parallel rank. Shade: the rank's share of its tokens. Bytes: what each rank sends.",
         "fill=\"#57606a\"");
    y_ += 52;
  }

  const Plan& plan_;
  const int lanes_;
  const int lane_width_;
  const int pieces_;  // of a data-parallel rank's tokens
  RowShards blocks_;  // one row for each piece
  const char* unit_ = "token";
  std::string body_;
  int y_ = 0;
};

}  // namespace

std::string to_svg(const Plan& plan) {
  return Picture(plan).draw();
}

}  // namespace plait
