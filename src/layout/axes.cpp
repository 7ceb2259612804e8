#include "layout/axes.h"

#include <set>

#include <fmt/ranges.h>

namespace plait {
namespace {

constexpr const char* kOriginNames[] = {"attn_dp", "attn_cp", "attn_tp"};
constexpr AxisOrigin kOrigins[] = {AxisOrigin::kAttnDp, AxisOrigin::kAttnCp, AxisOrigin::kAttnTp};

AxisOrigin origin_of(int stride, const ParallelConfig& config) {
  if (stride < config.attn_tp_size()) return AxisOrigin::kAttnTp;
  if (stride < config.attn_tp_size() * config.attn_cp_size) return AxisOrigin::kAttnCp;
  return AxisOrigin::kAttnDp;
}

}  // namespace

TokenAxes::TokenAxes(const ParallelConfig& config) : ranks_(config.tp_size) {
  const int attn_tp = config.attn_tp_size();
  const std::set<int> cuts = {
      1, attn_tp, attn_tp * config.attn_cp_size, config.moe_block_size(), config.dense_tp_size(), config.tp_size};
  // Outer to inner: from the largest cut to the smallest.
  for (auto cut = cuts.rbegin(); std::next(cut) != cuts.rend(); ++cut) {
    const int stride = *std::next(cut);
    const AxisSet own = AxisSet::axis(count());
    axes_.push_back({origin_of(stride, config), *cut / stride, stride});
    if (stride < config.moe_block_size()) experts_ = experts_ | own;
    if (stride < config.dense_tp_size()) dense_ = dense_ | own;
  }
  for (uint32_t bits = 0; bits <= all().bits(); ++bits) {
    widths_.push_back(1);
    std::vector<int> places(ranks_);
    for (int i = 0; i < count(); ++i) {
      if (!AxisSet::of_bits(bits).contains(AxisSet::axis(i))) continue;
      widths_.back() *= axes_[i].width;
      for (int rank = 0; rank < ranks_; ++rank)
        places[rank] = places[rank] * axes_[i].width + rank / axes_[i].stride % axes_[i].width;
    }
    places_.insert(places_.end(), places.begin(), places.end());
  }
}

AxisSet TokenAxes::of(AxisOrigin origin) const {
  AxisSet set;
  for (int i = 0; i < count(); ++i)
    if (axes_[i].origin == origin) set = set | AxisSet::axis(i);
  return set;
}

std::vector<int> TokenAxes::group(AxisSet set, int rank) const {
  std::vector<int> ranks;
  const AxisSet fixed = all() - set;
  const int own = place(fixed, rank);
  for (int other = 0; other < ranks_; ++other)
    if (place(fixed, other) == own) ranks.push_back(other);
  return ranks;
}

std::vector<std::string> TokenAxes::names(AxisSet set) const {
  std::vector<std::string> names;
  for (const AxisOrigin origin : kOrigins) {
    const AxisSet whole = of(origin);
    const AxisSet part = set & whole;
    if (part.empty()) continue;
    const std::string name = kOriginNames[static_cast<int>(origin)];
    if (part == whole) {
      names.push_back(name);
      continue;
    }
    // Outer and inner part of one origin may have equal widths: the stride tells them apart.
    for (int i = 0; i < count(); ++i)
      if (part.contains(AxisSet::axis(i)))
        names.push_back(fmt::format("{}({} x {})", name, axes_[i].width, axes_[i].stride));
  }
  return names;
}

std::string TokenAxes::to_string(AxisSet set) const {
  return fmt::format("{{{}}}", fmt::join(names(set), ", "));
}

std::string TokenAxes::group_name(AxisSet set) const {
  if (set.empty()) return "self";
  if (set == all()) return "tp";
  const bool one_origin = set == attn_dp() || set == attn_cp() || set == attn_tp();
  if (!one_origin && set == (attn_cp() | attn_tp())) return "attn";
  if (!one_origin && set == experts_) return "moe";
  if (!one_origin && set == dense_) return "dense_tp";
  return fmt::format("{}", fmt::join(names(set), "+"));
}

}  // namespace plait
