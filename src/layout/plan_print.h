// A plan for people and for programs: where the tokens are and what moves, per layer kind. Pure functions.
#pragma once

#include <string>

#include "layout/plan.h"

namespace plait {

std::string to_text(const Plan& plan);
// The same content; one object.
std::string to_json(const Plan& plan);
// Ranks of a stage as lanes, tokens as coloured blocks, collectives with their bytes. Of each kind the layers that most
// others are like; a complete SVG document.
std::string to_svg(const Plan& plan);

// Layers by the segment that they use, in order of first use: "layers 3-59", "layer 60", "embedding".
struct SegmentUse {
  int segment = 0;
  std::vector<int64_t> layers;  // empty: not a layer
  int times = 0;
};
std::vector<SegmentUse> segment_uses(const Plan& plan);
std::string describe(const Plan& plan, const SegmentUse& use);

// "14.0 KiB"; bytes per token are seldom whole.
std::string format_token_bytes(double bytes);

}  // namespace plait
