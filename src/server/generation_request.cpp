#include "server/generation_request.h"

namespace plait {
namespace {

// Logprob values of the answer: those of one position, at every output position and every prompt position asked for.
int64_t logprob_values(const Request& request) {
  if (!request.return_logprob) return 0;
  const auto prompt = static_cast<int64_t>(request.prompt_ids.size());
  const int64_t positions =
      request.sampling.max_new_tokens + (request.logprob_start < 0 ? 0 : prompt - request.logprob_start);
  return positions * (1 + request.top_logprobs + static_cast<int64_t>(request.logprob_ids.size()));
}

int64_t tokens(const Request& request) {
  return static_cast<int64_t>(request.prompt_ids.size()) + request.sampling.max_new_tokens;
}

// Of the rows of experts that the front end holds until the answer is sent.
int64_t routed_expert_bytes(const ApiContext& context, const Request& request) {
  if (!request.return_routed_experts || !context.routed_experts) return 0;
  const int64_t rows = tokens(request) - request.routed_experts_start;
  return std::max<int64_t>(rows, 0) * context.routed_experts->row_bytes();
}

// Every factor of these products is bounded, so they cannot overflow; their sum over the request must be bounded, too.
ApiStatus check_totals(const ApiContext& context, const Request& sample, int64_t samples,
                       const GenerationRequest& generation) {
  const auto sequences = static_cast<int64_t>(generation.sequences.size()) + samples;
  if (sequences > static_cast<int64_t>(context.limits.sequences)) {
    return bad_request(
        fmt::format("A request must not have more than {} sequences (prompts x n).", context.limits.sequences), "n");
  }
  int64_t total_tokens = samples * tokens(sample);
  int64_t total_logprobs = samples * logprob_values(sample);
  int64_t total_expert_bytes = samples * routed_expert_bytes(context, sample);
  for (const SequenceRequest& other : generation.sequences) {
    total_tokens += tokens(other.request);
    total_logprobs += logprob_values(other.request);
    total_expert_bytes += routed_expert_bytes(context, other.request);
  }
  if (total_tokens > context.limits.tokens) {
    return bad_request(fmt::format("The sequences of the request have {} tokens together, prompts and outputs; the "
                                   "limit is {}. Send fewer prompts at once.",
                                   total_tokens, context.limits.tokens),
                       "n");
  }
  if (total_logprobs > context.limits.logprob_values) {
    return bad_request(fmt::format("The request asks for {} logprobs in total; the limit is {}. Lower the number of "
                                   "alternatives, tokens or prompts.",
                                   total_logprobs, context.limits.logprob_values),
                       "logprobs");
  }
  if (total_expert_bytes > context.limits.routed_expert_bytes) {
    return bad_request(
        fmt::format("The request asks for {} bytes of routed experts; the limit is {}. Send fewer prompts "
                    "at once, or raise routed_experts_start_len.",
                    total_expert_bytes, context.limits.routed_expert_bytes),
        "return_routed_experts");
  }
  return {};
}

}  // namespace

std::optional<size_t> read_replica(const ApiContext& context, RequestFields& fields) {
  std::optional<int64_t> replica;
  for (const std::string_view name : {"data_parallel_rank", "routed_dp_rank"})
    if (const auto given = fields.integer(name, {0, context.replicas - 1})) replica = given;
  return replica;
}

ApiStatus add_samples(const ApiContext& context, const SamplingChoice& choice,
                      std::optional<int64_t> default_max_new_tokens, SequenceRequest prototype,
                      GenerationRequest& generation) {
  PLAIT_RETURN_IF_ERROR(apply_sampling(choice, default_max_new_tokens, context, prototype));
  PLAIT_RETURN_IF_ERROR(check_totals(context, prototype.request, choice.samples, generation));
  for (int64_t sample = 0; sample < choice.samples; ++sample) {
    SequenceRequest& sequence = generation.sequences.emplace_back(prototype);
    sequence.request.sampling.seed = sample_seed(choice.params.seed, sample);
    if (choice.samples == 1 || prototype.rid.empty()) continue;
    sequence.rid = fmt::format("{}_{}", prototype.rid, sample);
    if (prototype.group.empty()) sequence.group = prototype.rid;
  }
  return {};
}

}  // namespace plait
