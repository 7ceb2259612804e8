#include "engine/first_touch.h"

#include <algorithm>

#include "base/assert.h"

namespace plait {
namespace {

const char* describe(DisaggregationMode role) {
  switch (role) {
    case DisaggregationMode::kNull:
      return "a node for everything";
    case DisaggregationMode::kPrefill:
      return "a prefill node";
    case DisaggregationMode::kDecode:
      return "a decode node";
  }
  return "";
}

// A prompt of two pages, less a token that is decoded after it.
int64_t prompt_tokens(const TouchRoom& room) {
  const int64_t fits = std::min(int64_t{2}, room.kv_pages) * room.page_tokens - 1;
  return std::clamp<int64_t>(fits, 1, room.step_rows);
}

// Pages from `first` on, for `tokens`.
std::vector<int32_t> pages_for(int64_t first, int64_t tokens, const TouchRoom& room) {
  std::vector<int32_t> pages;
  for (int64_t page = first; (page - first) * room.page_tokens < tokens; ++page)
    pages.push_back(static_cast<int32_t>(page));
  return pages;
}

void add_prefill(StepBuilder& builder, int64_t tokens, int64_t first_page, int32_t slot, const TouchRoom& room) {
  const std::vector<int32_t> prompt(static_cast<size_t>(tokens), 0);
  builder.add(prompt, 0, pages_for(first_page, tokens, room), /*expanded_until=*/tokens, /*logit_count=*/1, slot);
}

void add_decode(StepBuilder& builder, int64_t position, const TouchRoom& room) {
  const std::vector<int32_t> token{0};
  builder.add(token, position, pages_for(0, position + 1, room), /*expanded_until=*/position, /*logit_count=*/1);
}

}  // namespace

const char* name_of(StepMode mode) {
  switch (mode) {
    case StepMode::kIdle:
      return "idle";
    case StepMode::kPrefill:
      return "prefill";
    case StepMode::kDecode:
      return "decode";
    case StepMode::kMixed:
      return "mixed";
    case StepMode::kVerify:
      return "verify";
  }
  return "";
}

bool has_mode(DisaggregationMode role, StepMode mode) {
  const bool decodes = mode == StepMode::kDecode || mode == StepMode::kMixed || mode == StepMode::kVerify;
  const bool prefills = mode == StepMode::kPrefill || mode == StepMode::kMixed;
  return !(decodes && role == DisaggregationMode::kPrefill) && !(prefills && role == DisaggregationMode::kDecode);
}

std::vector<StepMode> touched_modes(DisaggregationMode role, const TouchRoom& room) {
  if (role == DisaggregationMode::kPrefill) return {StepMode::kPrefill};
  if (role == DisaggregationMode::kDecode) return {StepMode::kDecode};
  std::vector<StepMode> modes{StepMode::kPrefill};
  if (room.kv_pages * room.page_tokens > 1) modes.push_back(StepMode::kDecode);
  // Of two sequences, which need a page each.
  if (room.kv_pages > 1 && room.step_rows > 1 && room.sequences > 1) modes.push_back(StepMode::kMixed);
  return modes;
}

Result<Step> first_touch_step(StepMode mode, DisaggregationMode role, const TouchRoom& room) {
  if (mode == StepMode::kVerify)
    return unsupported("verify steps need speculative decoding, which plait does not have");
  if (!has_mode(role, mode)) return unsupported(fmt::format("{} makes no such steps", describe(role)));
  StepBuilder builder(0);
  switch (mode) {
    case StepMode::kPrefill:
      add_prefill(builder, prompt_tokens(room), 0, 0, room);
      break;
    case StepMode::kDecode:
      add_decode(builder, role == DisaggregationMode::kDecode ? 0 : prompt_tokens(room), room);
      break;
    case StepMode::kMixed:
      add_decode(builder, room.page_tokens > 1 ? 1 : 0, room);
      add_prefill(builder, std::min(room.page_tokens, room.step_rows - 1), 1, /*slot=*/1, room);
      break;
    case StepMode::kIdle:
    case StepMode::kVerify:
      break;
  }
  Step step = std::move(builder).build();
  PLAIT_ASSERT(step.mode == mode, "a step's mode follows from its rows");
  return step;
}

}  // namespace plait
