// The engine process as the front end holds it: start, messages both ways, and the certainty of noticing its end.
//
// Owns the child process and the socket to it. Used on the loop thread, which must be the main thread (the child dies
// with the thread that made it). Callbacks come from the loop, never from within a call. What a dead engine still had
// to say is dropped.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <sys/types.h>

#include "server/event_loop.h"
#include "server/messages.h"

namespace plait {

class EngineLink {
 public:
  struct Events {
    std::function<void(ProgressMessage)> progress;
    std::function<void(EngineInfo)> ready;
    std::function<void(FailedMessage)> failed;  // it will die next
    std::function<void(OutputsMessage)> outputs;
    std::function<void(SchedulerLoad)> load;
    std::function<void(FlushedMessage)> flushed;
    std::function<void()> ended;                // because the first host's did; it will die next
    std::function<void(std::string how)> died;  // after it, start() may be called again
  };

  EngineLink(EventLoop& loop, Events events);
  ~EngineLink();  // kills the engine

  // Starts an engine process and sends it its options. One at a time.
  Status start(const EngineProcessOptions& options);
  bool running() const;
  pid_t pid() const;  // -1: none

  // Dropped if no engine runs: the ledger, not this connection, remembers requests.
  void send(const Request& request);
  void send(const AbortMessage& message);
  void send(const FlushCacheMessage& message);
  // Asks it to end by itself.
  void send_shutdown();

  // Its log says what its ranks do, whatever they hang in.
  void ask_for_activity();

  void kill();  // `died` follows

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace plait
