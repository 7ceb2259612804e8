// Keeps an engine running: starts it, starts it again when it dies, kills it when it hangs, and gives up when it dies
// too often. Loop thread only.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "server/engine_link.h"
#include "server/event_loop.h"
#include "server/restart_policy.h"
#include "server/serve.h"

namespace plait {

enum class EnginePhase { kStarting, kReady, kRestarting, kStopped };

class EngineSupervisor {
 public:
  using Clock = std::chrono::steady_clock;
  struct Events {
    std::function<void(const EngineInfo&)> ready;  // the first one, and each that replaced a dead one
    std::function<void(std::vector<RequestOutput>&&)> outputs;
    std::function<void(const FlushedMessage&)> flushed;
    std::function<void(const std::string& how)> died;
    // It will not be started again; the error says why.
    std::function<void(const Error& why)> gave_up;
    // Another host's engine ended as it was told to, and this one with it.
    std::function<void()> ended;
  };

  // `replica`: which one it is among several.
  EngineSupervisor(EventLoop& loop, const ServeOptions& options, std::optional<int> replica, Events events);

  void start();
  // Asks the engine to end, kills it if it does not, and starts none again.
  void stop(std::function<void()> stopped);

  // The log says what the engine process does: how it looks from here, and what its ranks say themselves.
  void log_activity();

  // Whether requests are in flight: a ready engine is only watched then, or if other hosts wait for it.
  void set_busy(bool busy);

  EnginePhase phase() const { return phase_; }
  const std::string& activity() const { return activity_; }  // "loading the model"
  double seconds_in_activity() const;
  // What all hosts do and did while the engine started, as of now.
  std::vector<StartRecord> start_records() const;
  const std::optional<EngineInfo>& info() const { return info_; }  // of the engine that runs, or ran last
  const SchedulerLoad& load() const { return load_; }
  uint64_t restarts() const { return restarts_; }
  pid_t pid() const { return link_.pid(); }
  EngineLink& link() { return link_; }

 private:
  void launch();
  void on_ready(const EngineInfo& info);
  void on_load(const SchedulerLoad& load);
  void on_died(const std::string& how);
  void watch();
  void look_for_progress();
  void give_up(const Error& why);
  bool other_hosts() const { return options_.engine.parallel.nnodes > 1; }
  void set_activity(std::string activity);
  void on_progress(ProgressMessage message);

  EventLoop& loop_;
  const ServeOptions& options_;
  const std::optional<int> replica_;
  const std::string engine_process_;  // as the log calls it
  Events events_;
  EngineLink link_;
  RestartPolicy policy_;
  EventLoop::Timer restart_timer_;
  EventLoop::Timer watchdog_;
  EventLoop::Timer stop_timer_;
  std::function<void()> stopped_;

  EnginePhase phase_ = EnginePhase::kStarting;
  std::string activity_ = "starting the engine process";
  Clock::time_point activity_since_ = Clock::now();
  std::vector<StartRecord> start_records_;
  Clock::time_point start_records_at_;
  std::optional<EngineInfo> info_;
  std::optional<FailedMessage> failure_;
  SchedulerLoad load_;
  uint64_t restarts_ = 0;
  bool busy_ = false;
  bool ended_ = false;
  bool watching_ = false;
  uint64_t start_work_ = 0;  // work_done() of an engine that is not ready yet
  Clock::time_point progress_at_;
  int silent_looks_ = 0;  // of the watchdog, since the engine's last message
};

}  // namespace plait
