// One iteration of the engine, as a value.
//
// The scheduler makes a Step through StepBuilder and nothing changes it afterwards; the model, the KV pools and the
// sampler only read it. Dummy runs, first-touch runs and idle ranks use the same builder. With several ranks the counts
// come from the cross-rank agreement; on a single rank there is one entry. True and padded counts are both kept.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/error.h"

namespace plait {

enum class StepMode : uint8_t { kIdle, kPrefill, kDecode, kMixed, kVerify };

// In place of a token id: the token that the step before this one chooses for the sequence in that state slot. A step
// can be made, and launched, before it is known.
inline constexpr int32_t future_token(int32_t state_slot) {
  return -1 - state_slot;
}
inline constexpr bool is_future(int32_t token_id) {
  return token_id < 0;
}
inline constexpr int32_t state_slot_of(int32_t future) {
  return -1 - future;
}

// The rows of one sequence in this step.
struct StepSequence {
  int32_t state_slot = 0;      // which per-sequence state (V4's compressors) is its own; unused by MLA
  std::vector<int32_t> pages;  // KV page table, covers every position up to the last row of this step
  int64_t first_position = 0;  // position of its first row = tokens already in the cache
  int64_t row_begin = 0;       // in the step's row order
  int64_t row_count = 0;
  // Rows at positions below this run attention in expanded form, the others absorbed: the request's prompt length, so
  // that a token has the same bits whether it was decoded or, after a retraction or a crash, computed again.
  int64_t expanded_until = 0;
};

struct Step {
  uint64_t sequence_number = 0;
  StepMode mode = StepMode::kIdle;
  std::vector<int64_t> true_rows;    // [dp ranks]
  std::vector<int64_t> padded_rows;  // [dp ranks]
  std::vector<int32_t> token_ids;    // [rows]
  std::vector<int32_t> positions;    // [rows]
  std::vector<StepSequence> sequences;
  std::vector<int64_t> logit_rows;  // rows whose logits are wanted, ascending

  int64_t rows() const { return static_cast<int64_t>(token_ids.size()); }
};

// Where in the KV pool each row goes: page * page_tokens + place in the page. [true rows]
std::vector<int64_t> kv_slots(const Step& step, int64_t page_tokens);

class StepBuilder {
 public:
  explicit StepBuilder(uint64_t sequence_number);
  // Appends `token_ids` as the next rows of a sequence whose first `first_position` tokens are cached. Logits are
  // wanted of the last `logit_count` of them. `pages` covers first_position + token_ids.size() positions.
  void add(std::span<const int32_t> token_ids, int64_t first_position, std::span<const int32_t> pages,
           int64_t expanded_until, int64_t logit_count, int32_t state_slot = 0);
  // Mode follows from the rows: every sequence adds one row at or past its prompt: decode; none does: prefill; else
  // mixed; no rows: idle.
  Step build() &&;

 private:
  Step step_;
  bool any_prefill_ = false;
  bool any_decode_ = false;
};

}  // namespace plait
