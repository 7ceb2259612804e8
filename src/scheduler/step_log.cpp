#include "scheduler/step_log.h"

#include "base/log.h"

namespace plait {
namespace {

constexpr int64_t kDecodeStepsPerLine = 40;

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

double token_usage(const SchedulerLoad& load) {
  return static_cast<double>(load.kv_used_tokens) / static_cast<double>(std::max<int64_t>(load.kv_tokens, 1));
}

}  // namespace

int64_t RateWindow::slot_number(Clock::time_point now) {
  return now.time_since_epoch() / kSlotLength;
}

void RateWindow::add(uint64_t tokens, Clock::time_point now) {
  const int64_t number = slot_number(now);
  if (per_second(now) == 0) busy_since_ = now;
  Slot& slot = slots_[static_cast<size_t>(number % kSlots)];
  if (slot.number != number) slot = {number, 0};
  slot.tokens += tokens;
}

double RateWindow::per_second(Clock::time_point now) const {
  const int64_t newest = slot_number(now);
  uint64_t tokens = 0;
  for (const Slot& slot : slots_)
    if (slot.number > newest - kSlots && slot.number <= newest) tokens += slot.tokens;
  if (tokens == 0) return 0;
  // From the later of: the start of the oldest slot, the first token after a pause. At least one slot, so that a single
  // token does not look like a torrent.
  const Clock::time_point window_start{kSlotLength * (newest - kSlots + 1)};
  const double span = seconds_between(std::max(window_start, busy_since_), now);
  return static_cast<double>(tokens) / std::max(span, std::chrono::duration<double>(kSlotLength).count());
}

StepLog::StepLog(int dp, int ranks) {
  if (ranks > 1) prefix_ = fmt::format("DP{} ", dp);
}

void StepLog::step_finished(const Batch& batch, const SchedulerLoad& load, Clock::time_point now) {
  if (batch.prefill_sequences > 0)
    log::info(
        "{}Prefill batch. #new-seq: {}, #new-token: {}, #cached-token: {}, token usage: {:.2f}, #running-req: {}, "
        "#queue-req: {}",
        prefix_, batch.prefill_sequences, batch.prefill_rows, batch.cached_tokens, token_usage(load), load.running,
        load.queued);
  if (static_cast<int64_t>(batch.entries.size()) == batch.prefill_sequences) return;
  if (++decode_steps_ < kDecodeStepsPerLine) return;
  const double rate = static_cast<double>(load.generated_tokens - generated_tokens_) /
                      std::max(seconds_between(last_decode_line_, now), 1e-9);
  log::info(
      "{}Decode batch. #running-req: {}, #token: {}, token usage: {:.2f}, gen throughput (token/s): {:.2f}, "
      "#queue-req: {}",
      prefix_, load.running, load.kv_used_tokens, token_usage(load), rate, load.queued);
  decode_steps_ = 0;
  generated_tokens_ = load.generated_tokens;
  last_decode_line_ = now;
}

}  // namespace plait
