// The steps that an engine makes before it serves, so that nothing is left to the first request's. Made as traffic's
// are, by StepBuilder. Pure functions.
#pragma once

#include <vector>

#include "base/error.h"
#include "engine/engine.h"
#include "model/step.h"

namespace plait {

// What there is room for.
struct TouchRoom {
  int64_t kv_pages = 1;
  int64_t page_tokens = 1;
  int64_t step_rows = 1;  // of one data-parallel rank
  int64_t sequences = 1;  // that run at a time
};

// Whether a node of that role can have such steps.
bool has_mode(DisaggregationMode role, StepMode mode);

const char* name_of(StepMode mode);

// The forward modes that traffic can have: a prefill node never decodes, and the reverse.
std::vector<StepMode> touched_modes(DisaggregationMode role, const TouchRoom& room);

// A step of that mode, of one or two short sequences with one row of logits each. A decode node's tokens have no prompt
// before them, since prompts come to it from elsewhere. kUnsupported: kVerify, before there is speculative decoding,
// and modes that the role never has.
Result<Step> first_touch_step(StepMode mode, DisaggregationMode role, const TouchRoom& room);

}  // namespace plait
