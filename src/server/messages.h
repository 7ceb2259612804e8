// What the front end and the engine process say to each other, as values; frames.h carries them.
//
// encode() gives a whole frame; decode functions take a frame's payload and refuse (kCorrupt) anything that is not
// exactly one message. Values only.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "engine/start_records.h"
#include "scheduler/request.h"
#include "scheduler/scheduler.h"
#include "server/frames.h"

namespace plait {

// The first frame to a new engine process.
struct EngineProcessOptions {
  EngineOptions engine;
  SchedulerOptions scheduler;
  std::string log_level = "info";
  std::string log_name = "engine";  // before each of its lines
};

struct AbortMessage {
  RequestId id = 0;
};

struct FlushCacheMessage {
  uint64_t ticket = 0;
};

struct FlushedMessage {
  uint64_t ticket = 0;
  bool flushed = false;  // false: requests were running or waiting
};

// What all hosts of an engine that starts are doing, and have done.
struct ProgressMessage {
  std::vector<StartRecord> records;
};

// The engine serves from now on; what it found out while loading.
struct EngineInfo {
  int64_t vocab_size = 0;
  int64_t context_tokens = 0;  // longest sequence that is accepted
  int64_t kv_tokens = 0;       // capacity of the KV pool
  int64_t kv_bytes = 0;
  int64_t weight_bytes = 0;
  int64_t page_tokens = 0;
  double start_seconds = 0;
};

// The engine cannot start; the process ends after it.
struct FailedMessage {
  ErrorKind kind = ErrorKind::kInternal;
  std::string message;
};

struct OutputsMessage {
  std::vector<RequestOutput> outputs;
  SchedulerLoad load;
};

Result<std::string> encode(const EngineProcessOptions& message);
Result<std::string> encode(const Request& message);
Result<std::string> encode(const AbortMessage& message);
Result<std::string> encode(const FlushCacheMessage& message);
Result<std::string> encode(const FlushedMessage& message);
Result<std::string> encode(const ProgressMessage& message);
Result<std::string> encode(const EngineInfo& message);
Result<std::string> encode(const FailedMessage& message);
Result<std::string> encode(const OutputsMessage& message);
Result<std::string> encode(const SchedulerLoad& message);
Result<std::string> encode_shutdown();
// The engine ends because the first host's did.
Result<std::string> encode_ended();

Result<EngineProcessOptions> decode_options(std::string_view payload);
Result<Request> decode_submit(std::string_view payload);
Result<AbortMessage> decode_abort(std::string_view payload);
Result<FlushCacheMessage> decode_flush_cache(std::string_view payload);
Result<FlushedMessage> decode_flushed(std::string_view payload);
Result<ProgressMessage> decode_progress(std::string_view payload);
Result<EngineInfo> decode_ready(std::string_view payload);
Result<FailedMessage> decode_failed(std::string_view payload);
Result<OutputsMessage> decode_outputs(std::string_view payload);
Result<SchedulerLoad> decode_load(std::string_view payload);

}  // namespace plait
