#include "server/activity_reporter.h"

#include <fmt/ranges.h>
#include <signal.h>

#include "base/log.h"

namespace plait {
namespace {

sigset_t question() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  return set;
}

}  // namespace

ActivityReporter::ActivityReporter() {
  const sigset_t set = question();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  thread_ = std::thread([this] { run(); });
}

ActivityReporter::~ActivityReporter() {
  stopping_.store(true);
  pthread_kill(thread_.native_handle(), SIGUSR1);
  thread_.join();
}

void ActivityReporter::watch(const std::shared_ptr<comm::World>& world) {
  const std::lock_guard lock(mutex_);
  world_ = world;
}

void ActivityReporter::watch_start(std::vector<StartRecord> of_all_hosts) {
  const std::lock_guard lock(mutex_);
  start_ = std::move(of_all_hosts);
  start_at_ = std::chrono::steady_clock::now();
}

void ActivityReporter::run() {
  const sigset_t set = question();
  while (true) {
    int number = 0;
    if (sigwait(&set, &number) != 0) continue;
    if (stopping_.load()) return;
    report();
  }
}

// At a level that most logs show: somebody has asked.
void ActivityReporter::report() {
  std::shared_ptr<comm::World> world;
  std::vector<std::string> start;
  {
    const std::lock_guard lock(mutex_);
    world = world_.lock();
    start = describe(aged(start_, start_at_));
  }
  if (!start.empty()) log::warning("SIGUSR1: the engine starts\n  {}", fmt::join(start, "\n  "));
  if (world)
    log::warning("SIGUSR1: what the ranks here are doing\n  {}", fmt::join(world->describe_activity(), "\n  "));
  else if (start.empty())
    log::warning("SIGUSR1: no ranks yet, or no more: the engine begins to start, or ends");
}

}  // namespace plait
