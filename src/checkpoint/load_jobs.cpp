#include "checkpoint/load_jobs.h"

#include <new>
#include <numeric>

#include "base/launch_region.h"
#include "base/thread_pool.h"

namespace plait {
namespace {

constexpr auto kProgressPeriod = std::chrono::milliseconds(100);

Status run_guarded(const std::function<Status(size_t)>& run, size_t job) {
  try {
    return run(job);
  } catch (const std::bad_alloc&) {
    return exhausted("out of memory while loading weights");
  } catch (const std::exception& exception) {
    return internal(fmt::format("while loading weights: {}", exception.what()));
  }
}

struct Load {
  std::span<const size_t> job_bytes;
  const std::function<Status(size_t)>& run;
  std::atomic<size_t> next{0};
  std::atomic<size_t> done_bytes{0};
  std::atomic<bool> stop{false};

  std::mutex mutex;
  std::condition_variable ended;
  int running = 0;  // the rest under `mutex`
  size_t failed_job = std::numeric_limits<size_t>::max();
  std::optional<Error> failure;

  void work() {
    while (!stop.load(std::memory_order_relaxed)) {
      const size_t job = next.fetch_add(1, std::memory_order_relaxed);
      if (job >= job_bytes.size()) break;
      if (Status status = run_guarded(run, job); status.has_error())
        fail(job, std::move(status).error());
      else
        done_bytes.fetch_add(job_bytes[job], std::memory_order_relaxed);
    }
    const std::lock_guard lock(mutex);
    if (--running == 0) ended.notify_all();
  }

  void fail(size_t job, Error error) {
    stop.store(true, std::memory_order_relaxed);
    const std::lock_guard lock(mutex);
    if (job > failed_job) return;
    failed_job = job;
    failure = std::move(error);
  }
};

}  // namespace

Status run_load_jobs(std::span<const size_t> job_bytes, int threads, const LoadProgress& progress,
                     const std::function<Status(size_t job)>& run) {
  const size_t total_bytes = std::accumulate(job_bytes.begin(), job_bytes.end(), size_t{0});
  const auto team = std::min(static_cast<size_t>(threads > 0 ? threads : usable_cores()), job_bytes.size());
  about_to_block("loading weights");
  Load load{.job_bytes = job_bytes, .run = run};
  load.running = static_cast<int>(team);
  std::vector<std::jthread> workers;  // joined before `load` goes
  for (size_t i = 0; i < team; ++i) workers.emplace_back([&load] { load.work(); });

  std::unique_lock lock(load.mutex);
  while (!load.ended.wait_for(lock, kProgressPeriod, [&] { return load.running == 0; })) {
    lock.unlock();
    if (progress) progress(load.done_bytes.load(std::memory_order_relaxed), total_bytes);
    lock.lock();
  }
  if (load.failure) return std::move(*load.failure);
  if (progress) progress(total_bytes, total_bytes);
  return {};
}

}  // namespace plait
