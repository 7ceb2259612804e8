#include "model/step.h"

#include "base/assert.h"

namespace plait {

std::vector<int64_t> kv_slots(const Step& step, int64_t page_tokens) {
  std::vector<int64_t> slots;
  for (const StepSequence& sequence : step.sequences)
    for (int64_t i = 0; i < sequence.row_count; ++i) {
      const int64_t position = sequence.first_position + i;
      slots.push_back(sequence.pages[position / page_tokens] * page_tokens + position % page_tokens);
    }
  return slots;
}

StepBuilder::StepBuilder(uint64_t sequence_number) {
  step_.sequence_number = sequence_number;
}

void StepBuilder::add(std::span<const int32_t> token_ids, int64_t first_position, std::span<const int32_t> pages,
                      int64_t expanded_until, int64_t logit_count, int32_t state_slot) {
  const auto count = static_cast<int64_t>(token_ids.size());
  PLAIT_ASSERT(count > 0, "a sequence in a step has at least one row");
  PLAIT_ASSERT(first_position >= 0 && !pages.empty(), "rows need positions and pages");
  PLAIT_ASSERT(logit_count >= 0 && logit_count <= count, "logits are wanted of rows of this step only");

  const int64_t row_begin = step_.rows();
  StepSequence& sequence = step_.sequences.emplace_back();
  sequence.state_slot = state_slot;
  sequence.pages.assign(pages.begin(), pages.end());
  sequence.first_position = first_position;
  sequence.row_begin = row_begin;
  sequence.row_count = count;
  sequence.expanded_until = expanded_until;

  step_.token_ids.insert(step_.token_ids.end(), token_ids.begin(), token_ids.end());
  for (int64_t i = 0; i < count; ++i) step_.positions.push_back(static_cast<int32_t>(first_position + i));
  for (int64_t i = count - logit_count; i < count; ++i) step_.logit_rows.push_back(row_begin + i);

  const bool decodes = count == 1 && first_position >= expanded_until;
  (decodes ? any_decode_ : any_prefill_) = true;
}

Step StepBuilder::build() && {
  step_.true_rows = {step_.rows()};
  step_.padded_rows = {step_.rows()};
  if (any_prefill_)
    step_.mode = any_decode_ ? StepMode::kMixed : StepMode::kPrefill;
  else
    step_.mode = any_decode_ ? StepMode::kDecode : StepMode::kIdle;
  return std::move(step_);
}

}  // namespace plait
