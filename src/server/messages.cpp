#include "server/messages.h"

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

namespace plait {
namespace {

// Each message lists its fields once, in `fields`; writing and reading walk the same list, so they cannot disagree.
class Write {
 public:
  template <typename T>
    requires std::is_arithmetic_v<T>
  void operator()(const T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      out.boolean(value);
    } else {
      out.number(value);
    }
  }
  void operator()(const std::string& value) { out.text(value); }
  template <typename T>
    requires std::is_arithmetic_v<T>
  void operator()(const std::vector<T>& values) {
    out.numbers(values);
  }
  template <typename T>
  void operator()(const std::optional<T>& value) {
    out.optional(value);
  }
  template <typename E>
  void enumerator(const E& value, E) {
    out.number(static_cast<uint8_t>(value));
  }
  template <typename T, typename Fields>
  void sequence(const std::vector<T>& values, size_t, Fields&& fields) {
    out.sequence(values, [&](const T& value) { fields(*this, value); });
  }
  FieldWriter out;
};

class Read {
 public:
  explicit Read(std::string_view payload) : in(payload) {}
  template <typename T>
    requires std::is_arithmetic_v<T>
  void operator()(T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      value = in.boolean();
    } else {
      value = in.number<T>();
    }
  }
  void operator()(std::string& value) { value = in.text(); }
  template <typename T>
    requires std::is_arithmetic_v<T>
  void operator()(std::vector<T>& values) {
    values = in.numbers<T>();
  }
  template <typename T>
  void operator()(std::optional<T>& value) {
    value = in.optional<T>();
  }
  template <typename E>
  void enumerator(E& value, E last) {
    value = in.enumerator(last);
  }
  template <typename T, typename Fields>
  void sequence(std::vector<T>& values, size_t element_bytes, Fields&& fields) {
    values = in.sequence<T>(element_bytes, [&] {
      T value{};
      fields(*this, value);
      return value;
    });
  }
  FieldReader in;
};

// Least sizes of sequence elements on the wire.
constexpr size_t kTokenLogprobBytes = 8;
constexpr size_t kOutputTokenBytes = 4 + 4 + 8 + 8;
constexpr size_t kPromptLogprobBytes = 4 + 1 + 8 + 8;
constexpr size_t kRequestOutputBytes = 8 + 8 + 8 + 8 + 1;

template <typename IO, typename M>
void describe_token_logprobs(IO& io, M& values) {
  io.sequence(values, kTokenLogprobBytes, [](auto& element_io, auto& value) {
    element_io(value.id);
    element_io(value.logprob);
  });
}

template <typename IO, typename M>
void describe_sampling(IO& io, M& m) {
  io(m.temperature);
  io(m.top_p);
  io(m.top_k);
  io(m.min_p);
  io(m.frequency_penalty);
  io(m.presence_penalty);
  io(m.repetition_penalty);
  io.sequence(m.logit_bias, 8, [](auto& element_io, auto& pair) {
    element_io(pair.first);
    element_io(pair.second);
  });
  io(m.seed);
  io(m.max_new_tokens);
  io(m.min_new_tokens);
  io(m.stop_token_ids);
  io(m.ignore_eos);
}

template <typename IO, typename M>
void describe_request(IO& io, M& m) {
  io(m.id);
  io(m.prompt_ids);
  io(m.output_ids);
  describe_sampling(io, m.sampling);
  io(m.eos_token_ids);
  io(m.priority);
  io(m.return_logprob);
  io(m.logprob_start);
  io(m.top_logprobs);
  io(m.logprob_ids);
}

template <typename IO, typename M>
void describe_load(IO& io, M& m) {
  io(m.running);
  io(m.queued);
  io(m.kv_tokens);
  io(m.kv_used_tokens);
  io(m.kv_evictable_tokens);
  io(m.steps);
  io(m.prompt_tokens);
  io(m.cached_prompt_tokens);
  io(m.generated_tokens);
  io(m.retractions);
  io(m.aborted);
  io(m.generation_rate);
}

template <typename IO, typename M>
void describe_finish(IO& io, M& m) {
  io.enumerator(m.kind, FinishKind::kAbort);
  io(m.matched_token);
  io.enumerator(m.error, ErrorKind::kInternal);
  io(m.message);
}

template <typename IO, typename M>
void describe_output(IO& io, M& m) {
  io(m.id);
  io.sequence(m.tokens, kOutputTokenBytes, [](auto& element_io, auto& token) {
    element_io(token.id);
    element_io(token.logprob);
    describe_token_logprobs(element_io, token.top);
    describe_token_logprobs(element_io, token.requested);
  });
  io.sequence(m.prompt_logprobs, kPromptLogprobBytes, [](auto& element_io, auto& position) {
    element_io(position.id);
    element_io(position.logprob);
    describe_token_logprobs(element_io, position.top);
    describe_token_logprobs(element_io, position.requested);
  });
  io(m.cached_tokens);
}

template <typename IO, typename M>
void describe_engine_options(IO& io, M& m) {
  io(m.model_path);
  io(m.dummy_weights);
  io(m.dtype);
  io.enumerator(m.implementation, kernels::Implementation::kFast);
  io(m.threads);
  io(m.page_tokens);
  io(m.mem_fraction_static);
  io(m.max_total_tokens);
  io(m.max_running_requests);
  io(m.chunked_prefill_tokens);
  io(m.context_tokens);
}

template <typename IO, typename M>
void describe_scheduler_options(IO& io, M& m) {
  io(m.max_running_requests);
  io(m.max_queued_requests);
  io(m.chunked_prefill_tokens);
  io(m.radix_cache);
  io.enumerator(m.policy, SchedulePolicy::kPriority);
  io(m.context_tokens);
}

template <typename IO, typename M>
void describe_info(IO& io, M& m) {
  io(m.vocab_size);
  io(m.context_tokens);
  io(m.kv_tokens);
  io(m.kv_bytes);
  io(m.weight_bytes);
  io(m.page_tokens);
  io(m.start_seconds);
}

}  // namespace

Result<std::string> encode(const EngineProcessOptions& message) {
  Write write;
  describe_engine_options(write, message.engine);
  write(boost::json::serialize(message.engine.config_overrides));
  describe_scheduler_options(write, message.scheduler);
  write(message.log_level);
  return std::move(write.out).finish(FrameKind::kOptions);
}

Result<EngineProcessOptions> decode_options(std::string_view payload) {
  Read read(payload);
  EngineProcessOptions message;
  std::string overrides;
  describe_engine_options(read, message.engine);
  read(overrides);
  describe_scheduler_options(read, message.scheduler);
  read(message.log_level);
  PLAIT_RETURN_IF_ERROR(read.in.status());
  boost::system::error_code problem;
  const boost::json::value value = boost::json::parse(overrides, problem);
  if (problem || !value.is_object()) return corrupt("broken frame: the configuration overrides are not a JSON object");
  message.engine.config_overrides = value.get_object();
  return message;
}

Result<std::string> encode(const Request& message) {
  Write write;
  describe_request(write, message);
  write(message.time_limit ? std::optional<int64_t>(message.time_limit->count()) : std::nullopt);
  return std::move(write.out).finish(FrameKind::kSubmit);
}

Result<Request> decode_submit(std::string_view payload) {
  Read read(payload);
  Request message;
  std::optional<int64_t> limit_ms;
  describe_request(read, message);
  read(limit_ms);
  if (limit_ms) message.time_limit = std::chrono::milliseconds(*limit_ms);
  PLAIT_RETURN_IF_ERROR(read.in.status());
  return message;
}

Result<std::string> encode(const AbortMessage& message) {
  Write write;
  write(message.id);
  return std::move(write.out).finish(FrameKind::kAbort);
}

Result<AbortMessage> decode_abort(std::string_view payload) {
  Read read(payload);
  AbortMessage message;
  read(message.id);
  PLAIT_RETURN_IF_ERROR(read.in.status());
  return message;
}

Result<std::string> encode(const FlushCacheMessage& message) {
  Write write;
  write(message.ticket);
  return std::move(write.out).finish(FrameKind::kFlushCache);
}

Result<FlushCacheMessage> decode_flush_cache(std::string_view payload) {
  Read read(payload);
  FlushCacheMessage message;
  read(message.ticket);
  PLAIT_RETURN_IF_ERROR(read.in.status());
  return message;
}

Result<std::string> encode(const FlushedMessage& message) {
  Write write;
  write(message.ticket);
  write(message.flushed);
  return std::move(write.out).finish(FrameKind::kFlushed);
}

Result<FlushedMessage> decode_flushed(std::string_view payload) {
  Read read(payload);
  FlushedMessage message;
  read(message.ticket);
  read(message.flushed);
  PLAIT_RETURN_IF_ERROR(read.in.status());
  return message;
}

Result<std::string> encode(const ProgressMessage& message) {
  Write write;
  write(message.phase);
  return std::move(write.out).finish(FrameKind::kProgress);
}

Result<ProgressMessage> decode_progress(std::string_view payload) {
  Read read(payload);
  ProgressMessage message;
  read(message.phase);
  PLAIT_RETURN_IF_ERROR(read.in.status());
  return message;
}

Result<std::string> encode(const EngineInfo& message) {
  Write write;
  describe_info(write, message);
  return std::move(write.out).finish(FrameKind::kReady);
}

Result<EngineInfo> decode_ready(std::string_view payload) {
  Read read(payload);
  EngineInfo message;
  describe_info(read, message);
  PLAIT_RETURN_IF_ERROR(read.in.status());
  return message;
}

Result<std::string> encode(const FailedMessage& message) {
  Write write;
  write.enumerator(message.kind, ErrorKind::kInternal);
  write(message.message);
  return std::move(write.out).finish(FrameKind::kFailed);
}

Result<FailedMessage> decode_failed(std::string_view payload) {
  Read read(payload);
  FailedMessage message;
  read.enumerator(message.kind, ErrorKind::kInternal);
  read(message.message);
  PLAIT_RETURN_IF_ERROR(read.in.status());
  return message;
}

Result<std::string> encode(const OutputsMessage& message) {
  Write write;
  write.sequence(message.outputs, kRequestOutputBytes, [](auto& io, auto& output) {
    describe_output(io, output);
    io(output.finish.has_value());
    if (output.finish) describe_finish(io, *output.finish);
  });
  describe_load(write, message.load);
  return std::move(write.out).finish(FrameKind::kOutputs);
}

Result<OutputsMessage> decode_outputs(std::string_view payload) {
  Read read(payload);
  OutputsMessage message;
  read.sequence(message.outputs, kRequestOutputBytes, [](auto& io, auto& output) {
    describe_output(io, output);
    bool finished = false;
    io(finished);
    if (finished) describe_finish(io, output.finish.emplace());
  });
  describe_load(read, message.load);
  PLAIT_RETURN_IF_ERROR(read.in.status());
  return message;
}

Result<std::string> encode(const SchedulerLoad& message) {
  Write write;
  describe_load(write, message);
  return std::move(write.out).finish(FrameKind::kLoad);
}

Result<SchedulerLoad> decode_load(std::string_view payload) {
  Read read(payload);
  SchedulerLoad message;
  describe_load(read, message);
  PLAIT_RETURN_IF_ERROR(read.in.status());
  return message;
}

Result<std::string> encode_shutdown() {
  return FieldWriter().finish(FrameKind::kShutdown);
}

}  // namespace plait
