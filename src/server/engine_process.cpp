#include "server/engine_process.h"

#include <atomic>
#include <thread>

#include <signal.h>
#include <unistd.h>

#include "base/log.h"
#include "engine/rank_calls.h"
#include "scheduler/scheduler.h"
#include "server/activity_reporter.h"
#include "server/frame_socket.h"
#include "server/output_sender.h"
#include "server/serve.h"

namespace plait {
namespace {

// Else a step could have more rows of logits than there are kernels for.
static_assert(SchedulerOptions{}.prompt_logprob_rows == CallLimits{}.prompt_logprob_rows);

// How often the load is reported while there is something to report; also the resolution of the watchdog.
constexpr int kReportMs = 500;
bool same(const SchedulerLoad& a, const SchedulerLoad& b) {
  return a.running == b.running && a.queued == b.queued && a.steps == b.steps && a.kv_used_tokens == b.kv_used_tokens &&
         a.kv_evictable_tokens == b.kv_evictable_tokens && a.generation_rate == b.generation_rate;
}

// Ends the process when its last words have been heard: by other hosts, which learn the cause of a failure from us and
// not from connections that end, and by the front end.
[[noreturn]] void end_process(int status) {
  constexpr std::chrono::milliseconds kLastWords{100};
  std::this_thread::sleep_for(kLastWords);
  _exit(status);
}

// The front end starts another engine and sends it the unfinished requests. Whoever notices first says why.
[[noreturn]] void end_after(FrameSocket& socket, const Error& failure) {
  static std::atomic<bool> said{false};
  if (!said.exchange(true)) {
    log::error("the engine failed: {}", failure.message);
    (void)socket.send(encode(FailedMessage{failure.kind, failure.message}));
  }
  end_process(1);
}

// Reads the front end's messages, and reports the load now and then: while it changes, or, where a process on another
// host waits for this one, always, so that the front end notices if it is stopped.
class Reader {
 public:
  Reader(FrameSocket& socket, Scheduler& scheduler, const LoadedEngine& engine)
      : socket_(socket), scheduler_(scheduler), engine_(engine) {}

  // Until the front end says shutdown (true) or is gone (false).
  bool run() {
    while (true) {
      const bool busy = report();
      auto frame = socket_.receive(busy || engine_.end ? kReportMs : -1);
      if (const auto failure = engine_.executor->failure()) end_after(socket_, *failure);
      if (frame.has_error()) {
        if (frame.error().kind == ErrorKind::kCorrupt) log::error("{}", frame.error().message);
        return false;
      }
      if (!*frame) continue;
      if ((*frame)->kind == FrameKind::kShutdown) return true;
      if (const Status handled = handle(**frame); handled.has_error()) {
        log::error("{}", handled.error().message);
        return false;
      }
    }
  }

 private:
  // True while the load is worth watching.
  bool report() {
    const auto now = std::chrono::steady_clock::now();
    const SchedulerLoad load = scheduler_.load();
    const bool busy = load.running + load.queued > 0 || load.generation_rate > 0 || !same(load, reported_);
    if ((busy || engine_.end) && now - reported_at_ >= std::chrono::milliseconds(kReportMs)) {
      if (socket_.send(encode(load)).has_error()) return false;
      reported_ = load;
      reported_at_ = now;
    }
    return busy;
  }

  Status handle(const Frame& frame) {
    switch (frame.kind) {
      case FrameKind::kSubmit: {
        PLAIT_ASSIGN_OR_RETURN(Request request, decode_submit(frame.payload));
        return submit(std::move(request));
      }
      case FrameKind::kAbort: {
        PLAIT_ASSIGN_OR_RETURN(const AbortMessage message, decode_abort(frame.payload));
        scheduler_.abort(message.id);
        return {};
      }
      case FrameKind::kFlushCache: {
        PLAIT_ASSIGN_OR_RETURN(const FlushCacheMessage message, decode_flush_cache(frame.payload));
        return socket_.send(encode(FlushedMessage{message.ticket, scheduler_.flush_cache()}));
      }
      default:
        return corrupt("the front end sent a message that only the engine sends");
    }
  }

  Status submit(Request request) {
    const RequestId id = request.id;
    const Status accepted = scheduler_.submit(std::move(request));
    if (!accepted.has_error()) return {};
    RequestOutput output{.id = id};
    output.finish =
        Finish{.kind = FinishKind::kAbort, .error = accepted.error().kind, .message = accepted.error().message};
    OutputsMessage message{.load = scheduler_.load()};
    message.outputs.push_back(std::move(output));
    return socket_.send(encode(message));
  }

  FrameSocket& socket_;
  Scheduler& scheduler_;
  const LoadedEngine& engine_;
  SchedulerLoad reported_;
  std::chrono::steady_clock::time_point reported_at_;
};

Result<EngineProcessOptions> receive_options(FrameSocket& socket) {
  constexpr int kTimeoutMs = 30'000;
  PLAIT_ASSIGN_OR_RETURN(const std::optional<Frame> frame, socket.receive(kTimeoutMs));
  if (!frame) return deadline_exceeded("the front end sent no options");
  if (frame->kind != FrameKind::kOptions) return corrupt("the front end's first message was not the options");
  return decode_options(frame->payload);
}

// The front end decides when to end, so that a signal to the whole process group lets running requests finish.
void leave_signals_to_the_front_end() {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) ::signal(signal, SIG_IGN);
}

// Tells the front end, and whoever asks by signal, the same.
class StartReporter : public StartListener {
 public:
  StartReporter(FrameSocket& socket, ActivityReporter& activity) : socket_(socket), activity_(activity) {}
  void met(const std::shared_ptr<comm::World>& world) override { activity_.watch(world); }
  void moved(const std::vector<StartRecord>& of_all_hosts) override {
    activity_.watch_start(of_all_hosts);
    (void)socket_.send(encode(ProgressMessage{of_all_hosts}));
  }

 private:
  FrameSocket& socket_;
  ActivityReporter& activity_;
};

Result<LoadedEngine> load_engine(const EngineOptions& options, StartListener& listener) {
  PLAIT_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, Engine::create(options, &listener));
  LoadedEngine loaded;
  const MemoryPlan& memory = engine->memory_plan();
  loaded.info = {.vocab_size = engine->config().vocab_size,
                 .context_tokens = engine->context_tokens(),
                 .kv_tokens = memory.kv_tokens,
                 .kv_bytes = static_cast<int64_t>(memory.kv_bytes),
                 .weight_bytes = static_cast<int64_t>(memory.weight_bytes),
                 .page_tokens = engine->page_tokens()};
  if (options.parallel.nnodes > 1) {
    if (!engine->leads()) {
      loaded.follow = [&engine = *engine](const auto& ready) { return engine.follow(ready); };
      loaded.followed_steps = [&engine = *engine] { return engine.followed_steps(); };
    }
    loaded.end = [&engine = *engine] { engine.end(); };
  }
  loaded.executor = std::move(engine);
  return loaded;
}

// On a host other than the first. Says now and then that it lives; ends when the front end says so or is gone.
void report_life(FrameSocket& socket, const LoadedEngine& engine) {
  while (true) {
    auto frame = socket.receive(kReportMs);
    if (frame.has_error()) _exit(1);
    if (*frame && (*frame)->kind == FrameKind::kShutdown) _exit(0);
    const SchedulerLoad load{.steps = engine.followed_steps(),
                             .compiles_after_ready = engine.executor->compiles_after_ready()};
    if (socket.send(encode(load)).has_error()) _exit(1);
  }
}

int follow(FrameSocket& socket, const LoadedEngine& engine) {
  std::thread([&] { report_life(socket, engine); }).detach();
  const Status followed = engine.follow([&] {
    if (socket.send(encode(engine.info)).has_error()) _exit(1);
  });
  if (followed.has_error()) end_after(socket, engine.executor->failure().value_or(followed.error()));
  (void)socket.send(encode_ended());
  end_process(0);
}

}  // namespace

int run_engine_process(int descriptor, const EngineLoader& load) {
  const auto started = std::chrono::steady_clock::now();
  leave_signals_to_the_front_end();
  FrameSocket socket(descriptor);
  auto options = receive_options(socket);
  if (options.has_error()) {
    log::error("{}", options.error().message);
    return 1;
  }
  log::Level level = log::Level::kInfo;
  log::parse_level(options->log_level, level);
  log::initialise(level, options->log_name);
  ActivityReporter activity;
  StartReporter start_reporter(socket, activity);
  auto loaded = load(options->engine, start_reporter);
  if (loaded.has_error()) {
    const Error& error = loaded.error();
    (void)socket.send(encode(FailedMessage{error.kind, error.message}));
    return 1;
  }
  loaded->info.start_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  if (loaded->follow) return follow(socket, *loaded);

  SchedulerOptions scheduling = options->scheduler;
  scheduling.context_tokens = loaded->info.context_tokens;
  // The front end bounds the queue; a request that it submits again after a crash must never be refused.
  scheduling.max_queued_requests = 0;
  // without a front end there is nobody to work for
  OutputSender sender(socket, [] { _exit(1); });
  Scheduler* reporting = nullptr;
  Scheduler scheduler(scheduling, *loaded->executor, [&](std::vector<RequestOutput>&& outputs) {
    sender.send(std::move(outputs), reporting->load());
  });
  reporting = &scheduler;

  if (socket.send(encode(loaded->info)).has_error()) return 1;
  std::thread reader([&] {
    if (!Reader(socket, scheduler, *loaded).run()) _exit(1);
    scheduler.stop();
  });
  try {
    scheduler.run();
  } catch (const std::exception& failure) {
    end_after(socket, loaded->executor->failure().value_or(Error{ErrorKind::kInternal, failure.what()}));
  }
  reader.join();
  if (loaded->end) loaded->end();
  return 0;
}

int run_engine_process(int socket) {
  return run_engine_process(socket, load_engine);
}

}  // namespace plait
