// The fields of the sampler's values, for messages to other processes (base/field_lists.h).
#pragma once

#include "base/field_lists.h"
#include "engine/sampler.h"
#include "engine/sampling_params.h"

namespace plait {

// Least sizes of sequence elements on the wire.
inline constexpr size_t kLogitBiasBytes = 8;
inline constexpr size_t kTokenLogprobBytes = 8;

template <typename IO, typename M>
void describe_token_logprobs(IO& io, M& values) {
  io.sequence(values, kTokenLogprobBytes,
              [](auto& element_io, auto& value) { fields(element_io, value.id, value.logprob); });
}

template <typename IO, typename M>
void describe_sampling(IO& io, M& m) {
  auto& [temperature, top_p, top_k, min_p, frequency_penalty, presence_penalty, repetition_penalty, logit_bias, seed,
         max_new_tokens, min_new_tokens, stop_token_ids, ignore_eos] = m;
  fields(io, temperature, top_p, top_k, min_p, frequency_penalty, presence_penalty, repetition_penalty);
  io.sequence(logit_bias, kLogitBiasBytes,
              [](auto& element_io, auto& bias) { fields(element_io, bias.first, bias.second); });
  fields(io, seed, max_new_tokens, min_new_tokens, stop_token_ids, ignore_eos);
}

}  // namespace plait
