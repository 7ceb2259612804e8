// `plait serve`: the front-end process (HTTP, text, request ledger, metrics) and the engine process that it supervises,
// or several of them: one for each replica.
//
// serve() runs in the front end. It starts the engine as a child (the same program, hidden subcommand `engine`, over an
// inherited socket), restarts it when it dies, and resubmits unfinished requests from the ledger, so that clients see a
// pause and not an error.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "scheduler/scheduler.h"
#include "server/load_balance.h"

namespace plait {

struct ServeOptions {
  EngineOptions engine;
  SchedulerOptions scheduler;

  std::string host = "127.0.0.1";
  uint16_t port = 30000;             // 0: any free one; the log line names it
  std::string api_key;               // empty: none; else every route but /health wants "Authorization: Bearer <key>"
  std::string served_model_name;     // default: model_path as given
  std::string chat_template;         // a word of parse_chat_format; empty: detected from the checkpoint
  bool skip_tokenizer_init = false;  // ids in, ids out
  bool stream_output = false;        // /generate streams increments instead of the whole text so far
  bool log_requests = false;
  bool enable_metrics = true;
  std::string log_level = "info";

  size_t max_body_bytes = 32 << 20;
  size_t max_header_bytes = 64 << 10;
  std::chrono::seconds request_read_timeout{30};    // a client must deliver header and body within it
  std::chrono::seconds default_request_timeout{0};  // --request-timeout; 0: none
  std::chrono::seconds drain_timeout{60};           // SIGTERM: running requests may finish for so long
  int max_engine_restarts = 5;                      // within the window; one more ends the server with a clear exit
  std::chrono::seconds engine_restart_window{300};
  LoadBalance load_balance = LoadBalance::kTotalRequests;  // among replicas
  std::chrono::seconds watchdog_timeout{
      300};  // no step for so long while requests run: the engine is killed and restarted
};

// Blocks until SIGTERM/SIGINT drained it or the engine failed for good. Returns the process' exit status.
int serve(const ServeOptions& options);

// Entry of the child process; `socket` is the inherited descriptor.
int run_engine_process(int socket);

}  // namespace plait
