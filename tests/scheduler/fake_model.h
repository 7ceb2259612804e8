// A model whose every token depends on everything a scheduler can get wrong.
//
// The KV memory is real: one 64-bit row per token, written at the place that the page table says. A row is a hash of
// the token, its position, the form it is computed in and the row before it, read back from memory; a next token is a
// hash of all rows up to its own, read back from memory, of the histories in its sampling row, and of (seed, output
// index). A page in two tables, a stale prefix hit, a wrong position or a lost token changes the output. expected_run()
// computes the same from the request alone.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "scheduler/batcher.h"
#include "scheduler/request.h"

namespace plait {

class FakeModel : public StepExecutor {
 public:
  static constexpr int32_t kVocab = 97;

  FakeModel(int64_t pages, int64_t page_tokens, RunAhead ahead = {})
      : pages_(pages),
        page_tokens_(page_tokens),
        ahead_(ahead),
        rows_(static_cast<size_t>(pages * page_tokens), 0xBAD) {}

  // Also asserts what a step must never do: write a page that another sequence of the step sees.
  std::vector<SampledToken> execute(const Step& step, std::span<const SamplingRow> rows) override;
  void launch(std::span<const StepCall> of_dp_ranks) override;
  std::vector<std::vector<SampledToken>> collect() override;
  int most_steps_under_way() const override { return ahead_.steps; }
  bool knows_future_tokens() const override { return ahead_.future_tokens; }
  int64_t kv_pages() const override { return pages_; }
  int64_t page_tokens() const override { return page_tokens_; }

  std::function<bool(const SamplingRow&)> is_not_finite;  // absent: never
  std::function<void(const Step&)> before_step;
  int64_t rows_computed() const { return rows_computed_; }

 private:
  uint64_t& row_at(const StepSequence& sequence, int64_t position);
  void write_rows(const Step& step, const StepSequence& sequence);
  uint64_t read_prefix(const StepSequence& sequence, int64_t position);
  void check(const Step& step) const;

  const int64_t pages_;
  const int64_t page_tokens_;
  const RunAhead ahead_;
  std::vector<uint64_t> rows_;  // [pages, page_tokens]
  std::deque<StepCall> launched_;
  std::map<int32_t, int32_t> chosen_;  // by the last step, of each state slot
  int64_t rows_computed_ = 0;
};

// What a request must get, whatever else happens.
struct ExpectedRun {
  std::vector<OutputToken> tokens;  // those after request.output_ids
  std::vector<PromptLogprob> prompt_logprobs;
  FinishKind finish = FinishKind::kLength;
};
ExpectedRun expected_run(const Request& request);

// Empty if `actual` is a beginning of `expected`, else the first difference.
std::string difference(const std::vector<OutputToken>& actual, const ExpectedRun& expected);
std::string difference(const std::vector<PromptLogprob>& actual, const ExpectedRun& expected);

}  // namespace plait
