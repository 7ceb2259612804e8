// The engine process: serves the front end over one socket until the front end is gone.
//
// The calling thread runs the scheduler, or follows the first host's; a second thread reads the socket, a third one
// waits for SIGUSR1.
// run_engine_process (serve.h) is the entry with the real engine; tests bring another StepExecutor.
#pragma once

#include <functional>
#include <memory>

#include "base/error.h"
#include "engine/engine.h"
#include "server/messages.h"

namespace plait {

struct LoadedEngine {
  std::unique_ptr<StepExecutor> executor;
  EngineInfo info;
  // Set on hosts other than the first, which have no scheduler: Engine::follow.
  std::function<Status(const std::function<void()>& ready)> follow;
  std::function<uint64_t()> followed_steps;
  // Set if there are other hosts, which end with this one: Engine::end.
  std::function<void()> end;
};
using EngineLoader = std::function<Result<LoadedEngine>(const EngineOptions&, StartListener&)>;

// Returns the exit status of the process.
int run_engine_process(int socket, const EngineLoader& load);

}  // namespace plait
