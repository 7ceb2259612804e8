// One engine as the front end holds it: its process, and the ledger of the requests that it was given.
//
// A server has one, or several that share nothing (--dp-size without --enable-dp-attention). A request stays with its
// replica: when the engine dies, the next one of the same replica goes on with it, so a request that kills engines
// meets no other one's. Loop thread only.
#pragma once

#include <functional>
#include <optional>
#include <unordered_map>
#include <vector>

#include "server/engine_supervisor.h"
#include "server/ledger.h"
#include "server/load_balance.h"

namespace plait {

class Replica {
 public:
  struct Events {
    std::function<void(const EngineInfo&)> started;             // its first engine is ready
    std::function<void(std::vector<RequestOutput>&&)> outputs;  // as the ledger has noted them
    std::function<void(const SchedulerLoad& last)> died;        // its engine; another one follows
    std::function<void(const Error& why)> gave_up;              // no other one follows
  };

  // `number`: among several. `options` outlives this.
  Replica(EventLoop& loop, const ServeOptions& options, std::optional<int> number, Events events);

  void start() { supervisor_.start(); }
  void stop(std::function<void()> stopped) { supervisor_.stop(std::move(stopped)); }

  // After add() and withdraw(), go_on().
  void add(Request request) { ledger_.add(std::move(request), Ledger::Clock::now()); }
  // Nobody wants more outputs of it.
  void withdraw(RequestId id);
  // Gives the engine what it may have, or watches the time limits while there is none.
  void go_on();

  // Empties the prefix cache; nothing: no answer from the engine.
  void flush_cache(std::function<void(std::optional<bool> flushed)> done);

  bool ready() const { return supervisor_.phase() == EnginePhase::kReady; }
  size_t unfinished() const { return ledger_.size(); }
  // `room` as --max-running-requests and --max-queued-requests leave it.
  ReplicaLoad load() const;
  void log_activity() { supervisor_.log_activity(); }
  const EngineSupervisor& supervisor() const { return supervisor_; }

 private:
  void on_ready(const EngineInfo& info);
  void on_outputs(std::vector<RequestOutput>&& outputs);
  void on_died();
  void sweep_deadlines();

  EventLoop& loop_;
  const ServeOptions& options_;
  Events events_;
  Ledger ledger_;
  EngineSupervisor supervisor_;
  EventLoop::Timer deadline_timer_;
  bool started_ = false;
  uint64_t next_ticket_ = 1;
  std::unordered_map<uint64_t, std::function<void(std::optional<bool>)>> flushes_;
};

}  // namespace plait
