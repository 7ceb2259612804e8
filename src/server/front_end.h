// The state of the front-end process: which requests are under way, who waits for them, and what the engine is doing.
//
// Owns the ledger, the engine's supervisor and the metrics. Loop thread only. Requests are given to it by Generations
// (clients) and probes (itself); outputs find their way back by request id.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "server/api_context.h"
#include "server/api_error.h"
#include "server/client_sequence.h"
#include "server/engine_supervisor.h"
#include "server/ledger.h"
#include "server/metrics.h"
#include "server/serve.h"

namespace plait {

// Who gets the outputs of requests. `index` is the request's place in the submission.
class OutputReceiver {
 public:
  virtual ~OutputReceiver() = default;
  virtual void on_output(size_t index, RequestOutput&& output) = 0;
};

class FrontEnd {
 public:
  // `ready` is called once, when the warm-up request went through; `ended` once, with the process' exit status.
  struct Events {
    std::function<void()> ready;
    std::function<void(int status)> ended;
  };

  FrontEnd(EventLoop& loop, const ServeOptions& options, ApiContext& context, Events events);

  void start();
  // SIGTERM: nothing new is accepted; `ended` follows when all is done, at the latest after drain_timeout.
  // `unanswered`: answers that are still being sent.
  void drain(std::function<size_t()> unanswered);

  // Why no request can be accepted now; nothing if one can.
  std::optional<ApiError> refusal() const;
  // Accepts all requests or none. Gives each an id, draws an rid where it is empty.
  ApiStatus submit(std::vector<std::unique_ptr<ClientSequence>>& sequences, std::shared_ptr<OutputReceiver> receiver);
  // The caller wants no more outputs of it.
  void abandon(RequestId id);
  // Ends requests as if the engine had aborted them. `rid` is one request's or a group's; unknown ones are ignored.
  void abort(const std::string& rid);
  void abort_all();

  // One short request by the server itself; `done` says whether it was answered in time.
  void probe(int64_t prompt_tokens, int64_t new_tokens, std::chrono::milliseconds timeout,
             std::function<void(bool answered)> done);
  // Empties the prefix cache; nothing: no answer from the engine.
  void flush_cache(std::function<void(std::optional<bool> flushed)> done);

  bool healthy() const { return serving_ && !draining_ && supervisor_.phase() == EnginePhase::kReady; }
  bool draining() const { return draining_; }
  bool warming_up() const { return supervisor_.phase() == EnginePhase::kReady && !serving_; }
  const EngineSupervisor& supervisor() const { return supervisor_; }
  const ApiContext& context() const { return context_; }
  const ServeOptions& options() const { return options_; }
  Metrics& metrics() { return metrics_; }
  std::string expose_metrics();
  size_t unfinished() const { return ledger_.size(); }
  EventLoop& loop() { return loop_; }

 private:
  struct Route {
    std::shared_ptr<OutputReceiver> receiver;
    size_t index = 0;
    std::string rid, group;
  };

  void on_ready(const EngineInfo& info);
  void on_outputs(std::vector<RequestOutput>&& outputs);
  void on_died();
  void on_gave_up(const std::string& why);
  void deliver(RequestOutput&& output);
  void deliver_all(std::vector<RequestOutput>&& outputs);
  void fail_all(ErrorKind kind, const std::string& message);
  void go_on();
  void forget(RequestId id);
  void forget_rid(const std::string& rid, RequestId id);
  void sweep_deadlines();
  int64_t room_in_queue() const;
  void check_drained();
  void end(int status);

  EventLoop& loop_;
  const ServeOptions& options_;
  ApiContext& context_;
  Events events_;
  Metrics metrics_;
  Ledger ledger_;
  EngineSupervisor supervisor_;
  EventLoop::Timer deadline_timer_;
  EventLoop::Timer drain_timer_;
  std::function<size_t()> unanswered_;
  std::chrono::steady_clock::time_point drain_until_;

  RequestId next_id_ = 1;
  std::unordered_map<RequestId, Route> routes_;
  std::unordered_multimap<std::string, RequestId> rids_;  // and groups
  uint64_t next_ticket_ = 1;
  std::unordered_map<uint64_t, std::function<void(std::optional<bool>)>> flushes_;
  bool serving_ = false;  // the warm-up request went through
  bool draining_ = false;
  bool ended_ = false;
};

}  // namespace plait
