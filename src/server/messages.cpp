#include "server/messages.h"

#include "base/field_lists.h"
#include "engine/sampling_lists.h"

namespace plait {
namespace {

// Least sizes of sequence elements on the wire.
constexpr size_t kOutputTokenBytes = 4 + 4 + 8 + 8;
constexpr size_t kPromptLogprobBytes = 4 + 1 + 8 + 8;
constexpr size_t kRequestOutputBytes = 8 + 8 + 8 + 8 + 8 + 8 + 1;

template <typename IO, typename M>
void describe_request(IO& io, M& m) {
  auto& [id, prompt_ids, output_ids, sampling, eos_token_ids, priority, return_logprob, logprob_start, top_logprobs,
         logprob_ids, return_routed_experts, routed_experts_start, time_limit] = m;
  fields(io, id, prompt_ids, output_ids);
  describe_sampling(io, sampling);
  fields(io, eos_token_ids, priority, return_logprob, logprob_start, top_logprobs, logprob_ids, return_routed_experts,
         routed_experts_start);
  io.milliseconds(time_limit);
}

template <typename IO, typename M>
void describe_load(IO& io, M& m) {
  auto& [running, queued, kv_tokens, kv_used_tokens, kv_evictable_tokens, steps, prompt_tokens, cached_prompt_tokens,
         generated_tokens, retractions, aborted, compiles_after_ready, generation_rate] = m;
  fields(io, running, queued, kv_tokens, kv_used_tokens, kv_evictable_tokens, steps, prompt_tokens,
         cached_prompt_tokens, generated_tokens, retractions, aborted, compiles_after_ready, generation_rate);
}

template <typename IO, typename M>
void describe_finish(IO& io, M& m) {
  auto& [kind, matched_token, error, message] = m;
  io.enumerator(kind, FinishKind::kAbort);
  io(matched_token);
  io.enumerator(error, ErrorKind::kInternal);
  io(message);
}

template <typename IO, typename M>
void describe_output(IO& io, M& m) {
  auto& [id, tokens, prompt_logprobs, cached_tokens, routed_experts, finish] = m;
  io(id);
  io.sequence(tokens, kOutputTokenBytes, [](auto& element_io, auto& token) {
    fields(element_io, token.id, token.logprob);
    describe_token_logprobs(element_io, token.top);
    describe_token_logprobs(element_io, token.requested);
  });
  io.sequence(prompt_logprobs, kPromptLogprobBytes, [](auto& element_io, auto& position) {
    fields(element_io, position.id, position.logprob);
    describe_token_logprobs(element_io, position.top);
    describe_token_logprobs(element_io, position.requested);
  });
  fields(io, cached_tokens, routed_experts.count, routed_experts.ids);
  io.optional(finish, [](auto& element_io, auto& value) { describe_finish(element_io, value); });
}

template <typename IO, typename M>
void describe_parallel(IO& io, M& m) {
  auto& [tp_size, pp_size, dp_size, enable_dp_attention, enable_dp_lm_head, ep_size, moe_dp_size, moe_dense_tp_size,
         moe_a2a_backend, deepep_mode, attn_cp_size, enable_prefill_cp, cp_strategy, prefill_cp_kv_sharded,
         enable_allreduce_fusion, nnodes, node_rank, dist_init_addr] = m;
  fields(io, tp_size, pp_size, dp_size, enable_dp_attention, enable_dp_lm_head, ep_size, moe_dp_size,
         moe_dense_tp_size);
  io.enumerator(moe_a2a_backend, MoeA2a::kAllToAll);
  io.enumerator(deepep_mode, DeepepMode::kLowLatency);
  fields(io, attn_cp_size, enable_prefill_cp);
  io.optional(cp_strategy, [](auto& strategy_io, auto& value) { strategy_io.enumerator(value, CpStrategy::kZigzag); });
  fields(io, prefill_cp_kv_sharded, enable_allreduce_fusion, nnodes, node_rank, dist_init_addr);
}

template <typename IO, typename M>
void describe_hosts(IO& io, M& m) {
  auto& [dist_timeout, rejoin_timeout, collective_timeout, secret_file, rejoins] = m;
  fields(io, dist_timeout, rejoin_timeout, collective_timeout, secret_file, rejoins);
}

template <typename IO, typename M>
void describe_engine_options(IO& io, M& m) {
  auto& [model_path, config_overrides, dummy_weights, dtype, implementation, threads, page_tokens, mem_fraction_static,
         memory_bytes, max_total_tokens, max_running_requests, chunked_prefill_tokens, context_tokens,
         keep_routed_experts, overlap, disaggregation, kernel_cache_dir, kernel_table, deterministic_kernels, parallel,
         hosts] = m;
  io(model_path);
  io.json(config_overrides);
  fields(io, dummy_weights, dtype);
  io.enumerator(implementation, kernels::Implementation::kFast);
  fields(io, threads, page_tokens, mem_fraction_static, memory_bytes, max_total_tokens, max_running_requests,
         chunked_prefill_tokens, context_tokens, keep_routed_experts, overlap);
  io.enumerator(disaggregation, DisaggregationMode::kDecode);
  fields(io, kernel_cache_dir, kernel_table, deterministic_kernels);
  describe_parallel(io, parallel);
  describe_hosts(io, hosts);
}

template <typename IO, typename M>
void describe_scheduler_options(IO& io, M& m) {
  auto& [max_running_requests, max_queued_requests, chunked_prefill_tokens, prompt_logprob_rows, radix_cache, policy,
         conservativeness, context_tokens, overlap] = m;
  fields(io, max_running_requests, max_queued_requests, chunked_prefill_tokens, prompt_logprob_rows, radix_cache);
  io.enumerator(policy, SchedulePolicy::kPriority);
  fields(io, conservativeness, context_tokens, overlap);
}

template <typename IO, typename M>
void describe_info(IO& io, M& m) {
  auto& [vocab_size, context_tokens, kv_tokens, kv_bytes, weight_bytes, page_tokens, start_seconds] = m;
  fields(io, vocab_size, context_tokens, kv_tokens, kv_bytes, weight_bytes, page_tokens, start_seconds);
}

template <typename M, typename Describe>
Result<std::string> encode_with(const M& message, FrameKind kind, Describe&& describe) {
  WriteFields write(kFrameHeaderBytes);
  describe(write, message);
  return finish_frame(std::move(write.out), kind);
}

constexpr auto kOptions = [](auto& io, auto& m) {
  describe_engine_options(io, m.engine);
  describe_scheduler_options(io, m.scheduler);
  fields(io, m.log_level, m.log_name);
};
constexpr auto kRequest = [](auto& io, auto& m) { describe_request(io, m); };
constexpr auto kAbort = [](auto& io, auto& m) { io(m.id); };
constexpr auto kFlushCache = [](auto& io, auto& m) { io(m.ticket); };
constexpr auto kFlushed = [](auto& io, auto& m) { fields(io, m.ticket, m.flushed); };
constexpr auto kProgress = [](auto& io, auto& m) {
  io.sequence(m.records, kStartRecordBytes,
              [](auto& element_io, auto& record) { describe_start_record(element_io, record); });
};
constexpr auto kInfo = [](auto& io, auto& m) { describe_info(io, m); };
constexpr auto kFailed = [](auto& io, auto& m) {
  io.enumerator(m.kind, ErrorKind::kInternal);
  io(m.message);
};
constexpr auto kLoad = [](auto& io, auto& m) { describe_load(io, m); };
constexpr auto kOutputs = [](auto& io, auto& m) {
  io.sequence(m.outputs, kRequestOutputBytes,
              [](auto& element_io, auto& output) { describe_output(element_io, output); });
  describe_load(io, m.load);
};

}  // namespace

Result<std::string> encode(const EngineProcessOptions& message) {
  return encode_with(message, FrameKind::kOptions, kOptions);
}
Result<std::string> encode(const Request& message) {
  return encode_with(message, FrameKind::kSubmit, kRequest);
}
Result<std::string> encode(const AbortMessage& message) {
  return encode_with(message, FrameKind::kAbort, kAbort);
}
Result<std::string> encode(const FlushCacheMessage& message) {
  return encode_with(message, FrameKind::kFlushCache, kFlushCache);
}
Result<std::string> encode(const FlushedMessage& message) {
  return encode_with(message, FrameKind::kFlushed, kFlushed);
}
Result<std::string> encode(const ProgressMessage& message) {
  return encode_with(message, FrameKind::kProgress, kProgress);
}
Result<std::string> encode(const EngineInfo& message) {
  return encode_with(message, FrameKind::kReady, kInfo);
}
Result<std::string> encode(const FailedMessage& message) {
  return encode_with(message, FrameKind::kFailed, kFailed);
}
Result<std::string> encode(const OutputsMessage& message) {
  return encode_with(message, FrameKind::kOutputs, kOutputs);
}
Result<std::string> encode(const SchedulerLoad& message) {
  return encode_with(message, FrameKind::kLoad, kLoad);
}
Result<std::string> encode_shutdown() {
  return finish_frame(FieldWriter(kFrameHeaderBytes), FrameKind::kShutdown);
}
Result<std::string> encode_ended() {
  return finish_frame(FieldWriter(kFrameHeaderBytes), FrameKind::kEnded);
}

Result<EngineProcessOptions> decode_options(std::string_view payload) {
  return decode_with<EngineProcessOptions>(payload, kOptions);
}
Result<Request> decode_submit(std::string_view payload) {
  return decode_with<Request>(payload, kRequest);
}
Result<AbortMessage> decode_abort(std::string_view payload) {
  return decode_with<AbortMessage>(payload, kAbort);
}
Result<FlushCacheMessage> decode_flush_cache(std::string_view payload) {
  return decode_with<FlushCacheMessage>(payload, kFlushCache);
}
Result<FlushedMessage> decode_flushed(std::string_view payload) {
  return decode_with<FlushedMessage>(payload, kFlushed);
}
Result<ProgressMessage> decode_progress(std::string_view payload) {
  return decode_with<ProgressMessage>(payload, kProgress);
}
Result<EngineInfo> decode_ready(std::string_view payload) {
  return decode_with<EngineInfo>(payload, kInfo);
}
Result<FailedMessage> decode_failed(std::string_view payload) {
  return decode_with<FailedMessage>(payload, kFailed);
}
Result<OutputsMessage> decode_outputs(std::string_view payload) {
  return decode_with<OutputsMessage>(payload, kOutputs);
}
Result<SchedulerLoad> decode_load(std::string_view payload) {
  return decode_with<SchedulerLoad>(payload, kLoad);
}

}  // namespace plait
