#include "jit/cache.h"

#include <atomic>
#include <cerrno>
#include <future>

#include "base/environment.h"
#include "base/launch_region.h"
#include "base/log.h"
#include "jit/entry_lock.h"
#include "jit/kernel_store.h"
#include "jit/lock_keeper.h"

namespace plait::jit {
namespace {

using Clock = std::chrono::steady_clock;

struct Found {
  std::shared_ptr<const CompiledKernel> kernel;
  KernelOrigin origin = KernelOrigin::kMemory;
};
using Built = std::shared_future<Result<Found>>;

double elapsed_seconds(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

std::shared_ptr<const CompiledKernel> share(CompiledKernel kernel) {
  return std::make_shared<const CompiledKernel>(std::move(kernel));
}

// What one build is about.
struct Task {
  const KernelSource& source;
  Compiler& compiler;
  const Digest& key;
  std::chrono::milliseconds wait_limit;
};

}  // namespace

std::filesystem::path default_cache_directory() {
  // A relative one is to be ignored, says the specification.
  if (const auto cache = environment(Variable::kXdgCacheHome); cache && cache->starts_with('/'))
    return std::filesystem::path(*cache) / "plait" / "kernels";
  if (const auto home = environment(Variable::kHome)) return std::filesystem::path(*home) / ".cache/plait/kernels";
  return {};
}

const char* name_of(KernelOrigin origin) {
  switch (origin) {
    case KernelOrigin::kMemory:
      return "memory";
    case KernelOrigin::kDisk:
      return "disk";
    case KernelOrigin::kBuiltHere:
      return "built";
    case KernelOrigin::kBuiltElsewhere:
      return "built by another process";
  }
  return "";
}

struct KernelCache::State {
  explicit State(CacheOptions given)
      : options(std::move(given)),
        files(options.files ? options.files : CacheFiles::real()),
        store(
            options.directory, files,
            options.warn ? options.warn : [](std::string_view text) { log::warning("{}", text); }),
        keeper(files, options.refresh_interval) {}

  bool has_directory() const { return !options.directory.empty(); }

  Result<Found> find_or_build(const Task& task);
  Result<Found> build_once_among_processes(const Task& task);
  Result<Found> build_locked(const Task& task, EntryLock& lock, bool waited);
  Result<Found> build(const Task& task);
  std::optional<Found> look_on_disk(const Task& task, KernelOrigin origin);
  void count(KernelOrigin origin);

  const CacheOptions options;
  const std::shared_ptr<CacheFiles> files;
  KernelStore store;
  LockKeeper keeper;

  mutable std::mutex mutex;
  std::map<Digest, std::shared_ptr<const CompiledKernel>> kernels;
  std::map<Digest, Built> building;  // by a thread of ours
  CacheCounters counters;
  std::atomic<bool> complete{false};
};

void KernelCache::State::count(KernelOrigin origin) {
  const std::scoped_lock lock(mutex);
  switch (origin) {
    case KernelOrigin::kMemory:
      ++counters.memory;
      break;
    case KernelOrigin::kDisk:
      ++counters.disk;
      break;
    case KernelOrigin::kBuiltHere:
      ++counters.built_here;
      break;
    case KernelOrigin::kBuiltElsewhere:
      ++counters.built_elsewhere;
      break;
  }
}

std::optional<Found> KernelCache::State::look_on_disk(const Task& task, KernelOrigin origin) {
  auto kernel = store.load(task.source, task.key);
  if (!kernel) return std::nullopt;
  return Found{share(*std::move(kernel)), origin};
}

Result<Found> KernelCache::State::build(const Task& task) {
  {
    const std::scoped_lock lock(mutex);
    counters.unexpected += complete;
  }
  if (complete) log::error("kernel '{}' is compiled after start-up: it is missing in the manifest", task.source.name);
  auto kernel = task.compiler.compile(task.source);
  if (kernel.has_error()) {
    const std::scoped_lock lock(mutex);
    ++counters.failed;
    return std::move(kernel).error();
  }
  const bool published =
      !has_directory() || store.publish(task.source, task.key, task.compiler.identity(), kernel.value());
  if (!published) {
    const std::scoped_lock lock(mutex);
    ++counters.unpublished;
  }
  return Found{share(std::move(kernel).value()), KernelOrigin::kBuiltHere};
}

Result<Found> KernelCache::State::build_locked(const Task& task, EntryLock& lock, bool waited) {
  if (lock.took_over()) {
    const std::scoped_lock guard(mutex);
    ++counters.taken_over;
  }
  // Whoever had the lock before us may have put the kernel there.
  if (auto found = look_on_disk(task, waited ? KernelOrigin::kBuiltElsewhere : KernelOrigin::kDisk))
    return *std::move(found);
  keeper.keep(lock.file());
  auto built = build(task);
  keeper.let_go(lock.file());
  return built;
}

Result<Found> KernelCache::State::build_once_among_processes(const Task& task) {
  EntryLock lock(files, store.lock_of(task.source, task.key), options.stale_after);
  const auto deadline = Clock::now() + task.wait_limit;
  auto pause = options.poll_interval;
  bool made_directory = false;
  for (bool waited = false;; waited = true) {
    switch (lock.try_lock()) {
      case EntryLock::Outcome::kMine:
        return build_locked(task, lock, waited);
      case EntryLock::Outcome::kNoLocks:
        if (lock.problem() != ENOENT || made_directory || !store.make_directory()) return build(task);
        made_directory = true;
        continue;
      case EntryLock::Outcome::kTheirs:
        break;
    }
    if (Clock::now() >= deadline) {
      const auto level = task.wait_limit.count() > 0 ? log::Level::kInfo : log::Level::kDebug;
      if (log::enabled(level))
        log::write(level, fmt::format("kernel cache: '{}' is built here too: {} has been at it for longer than {} ms",
                                      task.source.name, lock.owner(), task.wait_limit.count()));
      return build(task);
    }
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 3 / 2, options.poll_interval * 10);
    if (auto found = look_on_disk(task, KernelOrigin::kBuiltElsewhere)) return *std::move(found);
  }
}

Result<Found> KernelCache::State::find_or_build(const Task& task) {
  if (!has_directory()) return build(task);
  if (auto found = look_on_disk(task, KernelOrigin::kDisk)) return *std::move(found);
  auto built = build_once_among_processes(task);
  store.sweep(options.stale_after);
  return built;
}

KernelCache::KernelCache(CacheOptions options) : state_(std::make_unique<State>(std::move(options))) {}
KernelCache::~KernelCache() = default;

Result<CachedKernel> KernelCache::get_or_build(const KernelSource& source, Compiler& compiler,
                                               std::optional<std::chrono::milliseconds> wait_limit) {
  about_to_block("looking for a kernel");
  const auto begin = Clock::now();
  PLAIT_RETURN_IF_ERROR(validate(source));
  const Digest key = kernel_key(source, compiler.identity());
  State& state = *state_;

  std::promise<Result<Found>> promise;
  Built others;
  {
    const std::scoped_lock lock(state.mutex);
    if (const auto at = state.kernels.find(key); at != state.kernels.end()) {
      ++state.counters.memory;
      return CachedKernel{at->second, KernelOrigin::kMemory, elapsed_seconds(begin)};
    }
    if (const auto at = state.building.find(key); at != state.building.end())
      others = at->second;
    else
      state.building.emplace(key, promise.get_future().share());
  }
  if (others.valid()) {
    Result<Found> found = others.get();
    if (found.has_error()) return std::move(found).error();
    state.count(KernelOrigin::kMemory);
    return CachedKernel{std::move(found).value().kernel, KernelOrigin::kMemory, elapsed_seconds(begin)};
  }

  Result<Found> found = state.find_or_build({source, compiler, key, wait_limit.value_or(state.options.wait_limit)});
  {
    const std::scoped_lock lock(state.mutex);
    if (found.has_value()) state.kernels.emplace(key, found.value().kernel);
    state.building.erase(key);
  }
  promise.set_value(found);
  if (found.has_error()) return std::move(found).error();
  state.count(found.value().origin);
  return CachedKernel{found.value().kernel, found.value().origin, elapsed_seconds(begin)};
}

std::optional<CachedKernel> KernelCache::find(const KernelSource& source, const CompilerIdentity& compiler) {
  about_to_block("looking for a kernel");
  const auto begin = Clock::now();
  const Digest key = kernel_key(source, compiler);
  State& state = *state_;
  {
    const std::scoped_lock lock(state.mutex);
    if (const auto at = state.kernels.find(key); at != state.kernels.end()) {
      ++state.counters.memory;
      return CachedKernel{at->second, KernelOrigin::kMemory, elapsed_seconds(begin)};
    }
  }
  if (!state.has_directory() || validate(source).has_error()) return std::nullopt;
  auto kernel = state.store.load(source, key);
  if (!kernel) return std::nullopt;
  const std::scoped_lock lock(state.mutex);
  ++state.counters.disk;
  const auto at = state.kernels.emplace(key, share(*std::move(kernel))).first;
  return CachedKernel{at->second, KernelOrigin::kDisk, elapsed_seconds(begin)};
}

Status KernelCache::add(const KernelSource& source, const CompilerIdentity& compiler, CompiledKernel kernel) {
  about_to_block("writing a kernel");
  PLAIT_RETURN_IF_ERROR(validate(source));
  const Digest key = kernel_key(source, compiler);
  State& state = *state_;
  const bool published = !state.has_directory() || state.store.publish(source, key, compiler, kernel);
  const std::scoped_lock lock(state.mutex);
  if (!published) ++state.counters.unpublished;
  state.kernels.emplace(key, share(std::move(kernel)));
  return {};
}

void KernelCache::expect_no_builds() {
  state_->complete = true;
}

CacheCounters KernelCache::counters() const {
  const std::scoped_lock lock(state_->mutex);
  CacheCounters counters = state_->counters;
  counters.rejected = state_->store.rejected();
  return counters;
}

const std::filesystem::path& KernelCache::directory() const {
  return state_->options.directory;
}

}  // namespace plait::jit
