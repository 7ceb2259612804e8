#include "server/engine_supervisor.h"

#include <fstream>
#include <sstream>

#include "base/log.h"
#include "base/units.h"

namespace plait {
namespace {

constexpr std::chrono::milliseconds kStopPatience{3'000};
// Ranks that wait for a silent one say in which operation, before its end says less.
constexpr std::chrono::milliseconds kBlameTime{1'000};

// Often enough to be exact to a tenth of the limit, rarely enough to cost nothing.
std::chrono::milliseconds watchdog_interval(const ServeOptions& options) {
  const std::chrono::milliseconds limit = std::min(options.watchdog_timeout, options.engine.hosts.collective_timeout);
  return std::clamp(limit / 10, std::chrono::milliseconds(20), std::chrono::milliseconds(1'000));
}

// Grows while a process computes or reads mapped files, and stands still when it is stuck; 0: there is none.
uint64_t work_done(pid_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string text((std::istreambuf_iterator<char>(file)), {});
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(text.substr(name_end + 1));
  // state, 6 numbers, then minor faults, those of children, major faults, those of children, user and system ticks
  std::string skipped;
  for (int i = 0; i < 7; ++i) fields >> skipped;
  uint64_t minor = 0, major = 0, user = 0, system = 0;
  fields >> minor >> skipped >> major >> skipped >> user >> system;
  return minor + major + user + system;
}

}  // namespace

EngineSupervisor::EngineSupervisor(EventLoop& loop, const ServeOptions& options, std::optional<int> replica,
                                   Events events)
    : loop_(loop),
      options_(options),
      replica_(replica),
      engine_process_(replica ? fmt::format("engine process of replica {}", *replica) : "engine process"),
      events_(std::move(events)),
      link_(loop, {.progress = [this](ProgressMessage message) { on_progress(std::move(message)); },
                   .ready = [this](const EngineInfo& info) { on_ready(info); },
                   .failed = [this](FailedMessage message) { failure_ = std::move(message); },
                   .outputs =
                       [this](OutputsMessage message) {
                         on_load(message.load);
                         progress_at_ = Clock::now();
                         events_.outputs(std::move(message.outputs));
                       },
                   .load = [this](const SchedulerLoad& load) { on_load(load); },
                   .flushed = [this](const FlushedMessage& message) { events_.flushed(message); },
                   .ended = [this] { ended_ = true; },
                   .died = [this](const std::string& how) { on_died(how); }}),
      policy_(options.max_engine_restarts, options.engine_restart_window),
      restart_timer_(loop),
      watchdog_(loop),
      stop_timer_(loop) {}

void EngineSupervisor::set_activity(std::string activity) {
  activity_ = std::move(activity);
  activity_since_ = Clock::now();
}

void EngineSupervisor::on_progress(ProgressMessage message) {
  start_records_ = std::move(message.records);
  start_records_at_ = Clock::now();
  if (std::string activity = summary(start_records_); !activity.empty() && activity != activity_)
    set_activity(std::move(activity));
}

std::vector<StartRecord> EngineSupervisor::start_records() const {
  return aged(start_records_, start_records_at_);
}

double EngineSupervisor::seconds_in_activity() const {
  return std::chrono::duration<double>(Clock::now() - activity_since_).count();
}

void EngineSupervisor::log_activity() {
  if (phase_ == EnginePhase::kReady) {
    // Of requests only the first host's engine knows.
    const std::string requests = options_.engine.parallel.node_rank > 0
                                     ? ""
                                     : fmt::format("{} requests running, {} queued, ", load_.running, load_.queued);
    log::warning("SIGUSR1: {} ({}): {}{} steps done; last progress {} ago", engine_process_, pid(), requests,
                 load_.steps, format_seconds(std::chrono::duration<double>(Clock::now() - progress_at_).count()));
  } else {
    log::warning("SIGUSR1: {} ({}): {}, for {}", engine_process_, pid(), activity_,
                 format_seconds(seconds_in_activity()));
  }
  link_.ask_for_activity();
}

void EngineSupervisor::start() {
  phase_ = EnginePhase::kStarting;
  launch();
}

void EngineSupervisor::launch() {
  failure_.reset();
  start_records_.clear();
  silent_looks_ = 0;
  set_activity("starting the engine process");
  EngineOptions engine = options_.engine;
  engine.hosts.rejoins = info_.has_value();
  const std::string log_name = replica_ ? fmt::format("engine {}", *replica_) : "engine";
  const Status started = link_.start({engine, options_.scheduler, options_.log_level, log_name});
  if (started.has_error()) {
    give_up(started.error());
    return;
  }
  progress_at_ = Clock::now();
  watch();
}

void EngineSupervisor::on_ready(const EngineInfo& info) {
  const bool again = info_.has_value();
  info_ = info;
  load_ = {};
  phase_ = EnginePhase::kReady;
  // Nothing more is said of them.
  start_records_ = start_records();
  for (StartRecord& record : start_records_) record.ended = true;
  set_activity("serving");
  progress_at_ = Clock::now();
  if (again) log::info("{} ({}) is ready after {}", engine_process_, pid(), format_seconds(info.start_seconds));
  watch();
  events_.ready(info);
}

void EngineSupervisor::on_load(const SchedulerLoad& load) {
  silent_looks_ = 0;
  if (load.steps != load_.steps) progress_at_ = Clock::now();
  load_ = load;
}

void EngineSupervisor::set_busy(bool busy) {
  if (busy && !busy_) progress_at_ = Clock::now();
  busy_ = busy;
  watch();
}

void EngineSupervisor::watch() {
  const bool wanted = phase_ == EnginePhase::kReady ? busy_ || other_hosts() : link_.running();
  if (wanted == watching_) return;
  watching_ = wanted;
  if (wanted) {
    watchdog_.set(watchdog_interval(options_), [this] { look_for_progress(); });
  } else {
    watchdog_.cancel();
  }
}

// Steps count, not signs of life: a process that answers but computes nothing is stuck, too. Before there are steps,
// loading a large model may take long, but not without any work.
void EngineSupervisor::look_for_progress() {
  watching_ = false;
  const bool ready = phase_ == EnginePhase::kReady;
  const uint64_t work = ready ? start_work_ : work_done(pid());
  if (std::exchange(start_work_, work) != work) progress_at_ = Clock::now();
  // Signs of life count where other hosts wait for the engine: none would be there to make a step with, and one that is
  // stopped while nothing runs would otherwise be found out by the next request. They are counted in looks, not in
  // time, so that a front end that was stopped itself blames nobody.
  const std::chrono::milliseconds silence_limit = options_.engine.hosts.collective_timeout + kBlameTime;
  if (ready && other_hosts() && ++silent_looks_ * watchdog_interval(options_) >= silence_limit) {
    log::error("the {} has not been heard of for {}: it is killed (--collective-timeout {})", engine_process_,
               format_seconds(std::chrono::duration<double>(silence_limit).count()),
               options_.engine.hosts.collective_timeout.count());
    link_.kill();
    return;
  }
  const auto stalled = Clock::now() - progress_at_;
  if ((busy_ || !ready) && stalled >= options_.watchdog_timeout) {
    log::error("the {} made no {} (--watchdog-timeout {}): it is killed", engine_process_,
               ready ? "step while requests run" : "progress while it starts", options_.watchdog_timeout.count());
    link_.kill();
    return;
  }
  watch();
}

void EngineSupervisor::on_died(const std::string& how) {
  watchdog_.cancel();
  watching_ = false;
  if (stopped_) {
    phase_ = EnginePhase::kStopped;
    const auto stopped = std::exchange(stopped_, nullptr);
    stopped();
    return;
  }
  if (!info_) {
    give_up(failure_ ? Error{failure_->kind, failure_->message}
                     : unavailable(fmt::format("the {} {} while it started", engine_process_, how)));
    return;
  }
  if (ended_) {
    phase_ = EnginePhase::kStopped;
    set_activity("stopped");
    events_.ended();
    return;
  }
  // Others did not come back within --rejoin-timeout: waiting for them again would be the same limit twice.
  if (phase_ == EnginePhase::kRestarting && failure_ && failure_->kind == ErrorKind::kDeadline) {
    give_up({failure_->kind, failure_->message});
    return;
  }
  phase_ = EnginePhase::kRestarting;
  const std::string reason = failure_ ? fmt::format("{} ({})", how, failure_->message) : how;
  const auto delay = policy_.after_death(Clock::now(), load_.steps > 0);
  events_.died(how);
  load_ = {};
  if (!delay) {
    give_up(unavailable(
        fmt::format("the {} {}; it died {} times within {} s, more often than it is restarted (max_engine_restarts {})",
                    engine_process_, reason, policy_.recent_deaths(), options_.engine_restart_window.count(),
                    options_.max_engine_restarts)));
    return;
  }
  log::error("the {} {}; starting it again {}", engine_process_, reason,
             delay->count() == 0 ? "at once" : fmt::format("in {} ms", delay->count()));
  ++restarts_;
  set_activity("waiting before the engine is started again");
  restart_timer_.set(*delay, [this] { launch(); });
}

void EngineSupervisor::give_up(const Error& why) {
  phase_ = EnginePhase::kStopped;
  set_activity("stopped");
  events_.gave_up(why);
}

void EngineSupervisor::stop(std::function<void()> stopped) {
  restart_timer_.cancel();
  watchdog_.cancel();
  if (!link_.running()) {
    phase_ = EnginePhase::kStopped;
    loop_.post(std::move(stopped));
    return;
  }
  stopped_ = std::move(stopped);
  link_.send_shutdown();
  stop_timer_.set(kStopPatience, [this] { link_.kill(); });
}

}  // namespace plait
