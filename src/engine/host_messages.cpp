#include "engine/host_messages.h"

#include "engine/sampling_lists.h"

namespace plait {
namespace {

// Least sizes of sequence elements on the wire.
constexpr size_t kStepSequenceBytes = 4 + 8 + 4 * 8;
constexpr size_t kStepBytes = 8 + 1 + 6 * 8;
constexpr size_t kSamplingRowBytes = 1 + 2 * 8 + 4 + 8 + 8 + 1 + 4 + 4 + 8;
constexpr size_t kSampledTokenBytes = 4 + 4 + 8 + 8 + 1;
constexpr size_t kSequenceBytes = 8;

constexpr auto kStep = [](auto& io, auto& m) {
  auto& [sequence_number, mode, true_rows, padded_rows, token_ids, positions, sequences, logit_rows] = m;
  io(sequence_number);
  io.enumerator(mode, StepMode::kVerify);
  fields(io, true_rows, padded_rows, token_ids, positions);
  io.sequence(sequences, kStepSequenceBytes, [](auto& sequence_io, auto& sequence) {
    auto& [state_slot, pages, first_position, row_begin, row_count, expanded_until] = sequence;
    fields(sequence_io, state_slot, pages, first_position, row_begin, row_count, expanded_until);
  });
  io(logit_rows);
};

constexpr auto kSamplingRow = [](auto& io, auto& m) {
  auto& [params, prompt_ids, output_ids, newest_id, output_index, end_ids, want_logprob, top_logprobs, target_id,
         logprob_ids] = m;
  io.optional(params, [](auto& params_io, auto& value) { describe_sampling(params_io, value); });
  fields(io, prompt_ids, output_ids, newest_id, output_index, end_ids, want_logprob, top_logprobs, target_id,
         logprob_ids);
};

constexpr auto kOrder = [](auto& io, auto& m) {
  auto& [kind, phase, of_dp_ranks, rows] = m;
  io.enumerator(kind, HostOrder::Kind::kEnd);
  io.enumerator(phase, StartPhase::kServing);
  io.sequence(of_dp_ranks, kStepBytes, kStep);
  io.sequence(rows, kSequenceBytes,
              [](auto& dp_io, auto& of_dp) { dp_io.sequence(of_dp, kSamplingRowBytes, kSamplingRow); });
};

constexpr auto kSampledToken = [](auto& io, auto& m) {
  auto& [id, logprob, top, requested, not_finite] = m;
  fields(io, id, logprob);
  describe_token_logprobs(io, top);
  describe_token_logprobs(io, requested);
  io(not_finite);
};

constexpr auto kSampledRows = [](auto& io, auto& m) {
  io.sequence(m, kSequenceBytes,
              [](auto& dp_io, auto& of_dp) { dp_io.sequence(of_dp, kSampledTokenBytes, kSampledToken); });
};

constexpr auto kStartReport = [](auto& io, auto& m) {
  auto& [kv_pages, failure] = m;
  io(kv_pages);
  io.optional(failure, [](auto& failure_io, auto& value) {
    failure_io.enumerator(value.kind, ErrorKind::kInternal);
    failure_io(value.message);
  });
};

template <typename M, typename Describe>
std::string encode_with(const M& message, const Describe& describe) {
  WriteFields write;
  describe(write, message);
  return std::move(write.out).take();
}

}  // namespace

OwnedSamplingRow OwnedSamplingRow::of(const SamplingRow& row) {
  const auto copy = [](std::span<const int32_t> ids) { return std::vector<int32_t>(ids.begin(), ids.end()); };
  OwnedSamplingRow owned{.newest_id = row.newest_id,
                         .output_index = row.output_index,
                         .end_ids = copy(row.end_ids),
                         .want_logprob = row.want_logprob,
                         .top_logprobs = row.top_logprobs,
                         .target_id = row.target_id,
                         .logprob_ids = copy(row.logprob_ids)};
  if (!row.params) return owned;
  owned.params = *row.params;
  if (row.params->penalises_prompt()) owned.prompt_ids = copy(row.prompt_ids);
  if (row.params->penalises_output()) owned.output_ids = copy(row.output_ids);
  return owned;
}

SamplingRow OwnedSamplingRow::view() const {
  return {.params = params ? &*params : nullptr,
          .prompt_ids = prompt_ids,
          .output_ids = output_ids,
          .newest_id = newest_id,
          .output_index = output_index,
          .end_ids = end_ids,
          .want_logprob = want_logprob,
          .top_logprobs = top_logprobs,
          .target_id = target_id,
          .logprob_ids = logprob_ids};
}

std::string encode(const HostOrder& order) {
  return encode_with(order, kOrder);
}
std::string encode(const SampledRows& sampled) {
  return encode_with(sampled, kSampledRows);
}
std::string encode(const StartReport& report) {
  return encode_with(report, kStartReport);
}
Result<HostOrder> decode_order(std::string_view bytes) {
  return decode_with<HostOrder>(bytes, kOrder);
}
Result<SampledRows> decode_sampled(std::string_view bytes) {
  return decode_with<SampledRows>(bytes, kSampledRows);
}
Result<StartReport> decode_start_report(std::string_view bytes) {
  return decode_with<StartReport>(bytes, kStartReport);
}

}  // namespace plait
