// The state of the front-end process: which requests are under way, who waits for them, and who computes them.
//
// Owns the replicas (engines with their ledgers; most often one) and the metrics. Loop thread only. Requests are given
// to it by Generations (clients) and probes (itself); outputs find their way back by request id.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "server/api_context.h"
#include "server/api_error.h"
#include "server/client_sequence.h"
#include "server/metrics.h"
#include "server/replica.h"
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
  // `ready` is called once, when the warm-up requests of all replicas went through; `ended` once, with the process'
  // exit status.
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
  // `replica`: whose; absent: any one's.
  void probe(int64_t prompt_tokens, int64_t new_tokens, std::chrono::milliseconds timeout,
             std::function<void(bool answered)> done, std::optional<size_t> replica = std::nullopt);
  // Empties the prefix caches of all engines; one that is being started again has none. Nothing: no answer from one.
  void flush_cache(std::function<void(std::optional<bool> flushed)> done);

  // Requests are accepted and some engine computes them.
  bool healthy() const { return serving_ && !draining_ && ready_replicas() > 0; }
  bool draining() const { return draining_; }
  bool serving() const { return serving_; }
  size_t ready_replicas() const;
  const std::vector<std::unique_ptr<Replica>>& replicas() const { return replicas_; }
  // Of the first replica that is not ready, or the first of all: what there is to wait for.
  const EngineSupervisor& supervisor() const;
  const ApiContext& context() const { return context_; }
  const ServeOptions& options() const { return options_; }
  Metrics& metrics() { return metrics_; }
  std::string expose_metrics();
  size_t unfinished() const;
  EventLoop& loop() { return loop_; }

 private:
  struct Route {
    std::shared_ptr<OutputReceiver> receiver;
    size_t index = 0;
    std::string rid, group;
    Replica* replica = nullptr;
  };

  void add_replicas();
  void on_started(size_t number, const EngineInfo& info);
  void on_warmed_up(bool answered);
  void on_gave_up(const Replica& replica, const std::string& why);
  void deliver(RequestOutput&& output);
  // Ends requests from here: the engine, and who waits for them, are told.
  void fail(std::span<const RequestId> ids, ErrorKind kind, const std::string& message);
  std::vector<RequestId> ids_of(const Replica* replica) const;  // nullptr: of all
  std::optional<std::vector<size_t>> choose_places(const std::vector<std::unique_ptr<ClientSequence>>& sequences);
  ApiStatus check_rids(const std::vector<std::unique_ptr<ClientSequence>>& sequences) const;
  void forget(RequestId id);
  void forget_rid(const std::string& rid, RequestId id);
  void begin_drain();
  void check_drained();
  void end();

  EventLoop& loop_;
  const ServeOptions& options_;
  ApiContext& context_;
  Events events_;
  Metrics metrics_;
  ServeOptions replica_options_;  // what each replica is started with
  std::vector<std::unique_ptr<Replica>> replicas_;
  EventLoop::Timer drain_timer_;
  std::function<size_t()> unanswered_ = [] { return 0; };
  std::chrono::steady_clock::time_point drain_until_;

  RequestId next_id_ = 1;
  std::unordered_map<RequestId, Route> routes_;
  std::unordered_multimap<std::string, RequestId> rids_;  // and groups
  size_t turn_ = 0;                                       // the replica after the one that was given a request last
  size_t warmed_up_ = 0;                                  // replicas whose warm-up request went through
  bool serving_ = false;                                  // all of them
  bool draining_ = false;
  bool ended_ = false;
  int status_ = 0;  // to end with
};

}  // namespace plait
