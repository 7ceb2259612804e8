#include "jit/build_farm.h"

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "base/log.h"
#include "base/thread_pool.h"
#include "jit/build_shares.h"

namespace plait::jit {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using Kind = FarmMessage::Kind;

constexpr milliseconds kLook{10};           // at messages, and at what has become overdue
constexpr milliseconds kReportPeriod{500};  // if nothing happens
constexpr double kOverdueFactor = 2.0;      // of the time that a kernel would take here

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

milliseconds as_milliseconds(double seconds) {
  return std::chrono::ceil<milliseconds>(std::chrono::duration<double>(seconds));
}

// A kernel on its way.
struct Item {
  BuildItem what;
  bool needed = false;                            // by ranks here
  bool here = false;                              // in this process' memory
  bool looked = false;                            // in the directory, before anything is built
  std::optional<Clock::time_point> under_way;     // here
  std::set<int> at;                               // other builders that have it
  std::map<int, Clock::time_point> under_way_at;  // other builders that build it
  std::optional<int> asked;                       // who was asked to send it

  bool somewhere() const { return here || !at.empty(); }
  bool untouched() const { return !somewhere() && !under_way && under_way_at.empty(); }
};

struct Peer {
  bool gone = false;
  bool said_hello = false;
  bool done = false;
  bool same_compiler = true;  // else its keys are not ours
  int cores = 0;
};

}  // namespace

struct BuildFarm::State {
  State(KernelCache& the_cache, Compiler& the_compiler, FarmLink* the_link, FarmOptions the_options)
      : cache(the_cache),
        compiler(the_compiler),
        link(the_link),
        options(std::move(the_options)),
        self(link ? link->builder() : 0),
        peers(static_cast<size_t>(link ? link->builders() : 1)) {
    if (options.cores <= 0) options.cores = usable_cores();
  }

  // What a thread does next with an item.
  struct Task {
    size_t item = 0;
    bool look_only = false;
    bool help = false;
    milliseconds wait_limit{0};  // for another process that builds it
  };

  void list(std::span<const std::vector<KernelManifest>> of_builders);
  void work();
  std::optional<Task> next_task();
  std::optional<Task> next_build();
  bool someone_needs(const Item& item) const;
  bool is_overdue(const Item& item) const;
  double expected_seconds(const Item& item) const;
  void look(size_t index);
  void build(const Task& task);
  void note_time(const Item& item, double seconds);

  Result<FarmReport> run();
  void go_on();
  void share_out();
  bool everybody_done() const;
  void send_to_all(const FarmMessage& message);
  void handle(ReceivedMessage received);
  void on_hello(int from, const FarmMessage& message);
  void on_built(int from, Item& item);
  void on_entry(int from, Item& item, const std::string& bytes);
  void answer(int to, const Item& item);
  void lose(int builder);
  void set_failure(Error why);
  void report_progress();
  Item* find(const Digest& key);

  KernelCache& cache;
  Compiler& compiler;
  FarmLink* const link;
  FarmOptions options;
  const int self;
  const Clock::time_point begin = Clock::now();

  mutable std::mutex mutex;  // of everything below, but `threads`
  std::condition_variable changed;
  std::vector<Item> items;  // in the order of their keys
  std::vector<size_t> own_share;
  std::vector<Peer> peers;
  size_t looks_left = 0, next_look = 0;
  std::optional<Clock::time_point> looked_at;  // when all was looked for
  bool shared = false;                         // own_share is known
  bool ending = false;
  bool said_done = false;
  std::optional<Error> failure;
  double actual_seconds = 0, planned_seconds = 0;  // of what was compiled here
  FarmReport report;
  std::optional<size_t> reported;
  Clock::time_point reported_at;

  std::vector<std::thread> threads;
};

// ---- what there is to do

void BuildFarm::State::list(std::span<const std::vector<KernelManifest>> of_builders) {
  for (BuildItem& what : builds_of(of_builders, compiler.identity())) {
    Item& item = items.emplace_back();
    item.needed = std::ranges::binary_search(what.users, self);
    item.what = std::move(what);
    report.needed += item.needed;
    looks_left += item.needed;
  }
  report.kernels = items.size();
  if (looks_left == 0) looked_at = Clock::now();
}

Item* BuildFarm::State::find(const Digest& key) {
  const auto at = std::ranges::lower_bound(items, key, {}, [](const Item& item) { return item.what.key; });
  return at != items.end() && at->what.key == key ? &*at : nullptr;
}

bool BuildFarm::State::someone_needs(const Item& item) const {
  return std::ranges::any_of(item.what.users, [&](int user) {
    const Peer& peer = peers[static_cast<size_t>(user)];
    return user == self || (!peer.gone && peer.same_compiler);
  });
}

// On this host, going by what was built so far.
double BuildFarm::State::expected_seconds(const Item& item) const {
  return planned_seconds > 0 ? item.what.seconds * actual_seconds / planned_seconds : item.what.seconds;
}

bool BuildFarm::State::is_overdue(const Item& item) const {
  if (item.somewhere() || item.under_way || item.under_way_at.empty()) return false;
  // The latest, so that helpers do not all help with the same one.
  Clock::time_point since = Clock::time_point::min();
  for (const auto& [builder, at] : item.under_way_at) since = std::max(since, at);
  return seconds_since(since) > std::max(kOverdueFactor * expected_seconds(item),
                                         std::chrono::duration<double>(options.least_overdue).count());
}

// Own share first, then what nobody has begun, then what somebody is too slow with.
std::optional<BuildFarm::State::Task> BuildFarm::State::next_build() {
  const auto wait_limit = [&](size_t index) {
    return std::max(options.least_overdue, as_milliseconds(kOverdueFactor * expected_seconds(items[index])));
  };
  for (const size_t index : own_share)
    if (items[index].untouched() && someone_needs(items[index]))
      return Task{.item = index, .wait_limit = wait_limit(index)};
  std::vector<size_t> left, overdue;
  for (size_t index = 0; index < items.size(); ++index) {
    if (!someone_needs(items[index])) continue;
    if (items[index].untouched()) left.push_back(index);
    if (is_overdue(items[index])) overdue.push_back(index);
  }
  const auto costlier = [&](size_t a, size_t b) { return items[a].what.seconds > items[b].what.seconds; };
  // Helpers begin at different places, so that they don't all take the same one.
  const auto own_place = [&](std::vector<size_t>& list) {
    std::ranges::stable_sort(list, costlier);
    return list[list.size() * static_cast<size_t>(self) / peers.size()];
  };
  if (!left.empty()) {
    const size_t index = own_place(left);
    return Task{.item = index, .help = shared, .wait_limit = wait_limit(index)};
  }
  if (!overdue.empty()) return Task{.item = own_place(overdue), .help = true};
  return std::nullopt;
}

std::optional<BuildFarm::State::Task> BuildFarm::State::next_task() {
  while (next_look < items.size()) {
    const size_t index = next_look++;
    if (items[index].needed) return Task{.item = index, .look_only = true};
  }
  if (!shared && (!looked_at || Clock::now() - *looked_at < options.hello_patience)) return std::nullopt;
  return next_build();
}

// ---- the threads that compile

void BuildFarm::State::work() {
  std::unique_lock lock(mutex);
  while (!ending) {
    const std::optional<Task> task = next_task();
    if (!task) {
      changed.wait_for(lock, kLook);
      continue;
    }
    Item& item = items[task->item];
    if (!task->look_only) item.under_way = Clock::now();
    lock.unlock();
    if (task->look_only) {
      look(task->item);
    } else {
      build(*task);
    }
    lock.lock();
  }
}

void BuildFarm::State::look(size_t index) {
  Item& item = items[index];
  const bool found = cache.find(item.what.source, compiler.identity()).has_value();
  const std::lock_guard lock(mutex);
  item.here |= found;
  report.from_cache += found;
  if (--looks_left == 0) looked_at = Clock::now();
  changed.notify_all();
}

void BuildFarm::State::build(const Task& task) {
  Item& item = items[task.item];
  send_to_all({.kind = Kind::kStarted, .key = item.what.key});
  const auto built = cache.get_or_build(item.what.source, compiler, task.wait_limit);
  if (built.has_error()) {
    send_to_all({.kind = Kind::kFailed, .error = built.error()});
    set_failure(built.error());
    return;
  }
  {
    const std::lock_guard lock(mutex);
    item.here = true;
    item.under_way.reset();
    if (built->origin == KernelOrigin::kBuiltHere) {
      ++report.built;
      report.helped += task.help;
      note_time(item, built->seconds);
    }
    changed.notify_all();
  }
  send_to_all({.kind = Kind::kBuilt, .key = item.what.key});
}

void BuildFarm::State::note_time(const Item& item, double seconds) {
  actual_seconds += seconds;
  planned_seconds += item.what.seconds;
  report.compile_seconds += seconds;
  if (seconds <= report.slowest_seconds) return;
  report.slowest_seconds = seconds;
  report.slowest = item.what.source.name;
}

// ---- the other builders

void BuildFarm::State::send_to_all(const FarmMessage& message) {
  for (int builder = 0; builder < static_cast<int>(peers.size()); ++builder)
    if (builder != self) link->send(builder, message);
}

void BuildFarm::State::set_failure(Error why) {
  const std::lock_guard lock(mutex);
  if (!failure) failure = std::move(why);
  ending = true;
  changed.notify_all();
}

void BuildFarm::State::on_hello(int from, const FarmMessage& message) {
  Peer& peer = peers[static_cast<size_t>(from)];
  peer.said_hello = true;
  peer.same_compiler = message.compiler == compiler.identity();
  peer.cores = std::clamp(message.cores, 0, 1 << 16);
  if (!peer.same_compiler)
    log::warning("host {} compiles with {} {}, this one with {} {}: they cannot share kernels", from,
                 message.compiler.name, message.compiler.version, compiler.identity().name,
                 compiler.identity().version);
}

void BuildFarm::State::on_built(int from, Item& item) {
  {
    const std::lock_guard lock(mutex);
    item.under_way_at.erase(from);
    item.at.insert(from);
    if (!item.needed || item.here) return;
  }
  const bool found = cache.find(item.what.source, compiler.identity()).has_value();
  const std::lock_guard lock(mutex);
  item.here |= found;
}

void BuildFarm::State::answer(int to, const Item& item) {
  FarmMessage message{.kind = Kind::kEntry, .key = item.what.key};
  if (const auto found = cache.find(item.what.source, compiler.identity()))
    message.bytes = encode_entry(item.what.key, item.what.source, compiler.identity(), *found->kernel);
  link->send(to, message);
}

void BuildFarm::State::on_entry(int from, Item& item, const std::string& bytes) {
  Result<CompiledKernel> kernel = decode_entry(bytes, item.what.key);
  Status added;
  if (kernel.has_error()) {
    added = kernel.error();
  } else {
    added = cache.add(item.what.source, compiler.identity(), std::move(kernel).value());
  }
  if (added.has_error())
    log::warning("kernel '{}' from host {} is built here instead: {}", item.what.source.name, from,
                 added.error().message);
  const std::lock_guard lock(mutex);
  item.asked.reset();
  if (added.has_error()) {
    item.at.erase(from);  // as if it had never been there
  } else {
    report.received += !item.here;
    item.here = true;
  }
}

// Its work is open again, and nobody waits for it.
void BuildFarm::State::lose(int builder) {
  const std::lock_guard lock(mutex);
  peers[static_cast<size_t>(builder)].gone = true;
  for (Item& item : items) {
    item.at.erase(builder);
    item.under_way_at.erase(builder);
    if (item.asked == builder) item.asked.reset();
  }
}

void BuildFarm::State::handle(ReceivedMessage received) {
  const int from = received.from;
  if (!received.message) return lose(from);
  FarmMessage& message = *received.message;
  switch (message.kind) {
    case Kind::kHello: {
      const std::lock_guard lock(mutex);
      return on_hello(from, message);
    }
    case Kind::kDone: {
      const std::lock_guard lock(mutex);
      peers[static_cast<size_t>(from)].done = true;
      return;
    }
    case Kind::kFailed:
      return set_failure(cancelled(fmt::format("host {} ended the build: {}", from, message.error.message)));
    case Kind::kStarted:
    case Kind::kBuilt:
    case Kind::kWanted:
    case Kind::kEntry:
      break;
  }
  Item* const item = find(message.key);
  if (!item) return;  // of another compiler
  if (message.kind == Kind::kBuilt) return on_built(from, *item);
  if (message.kind == Kind::kWanted) return answer(from, *item);
  if (message.kind == Kind::kEntry) return on_entry(from, *item, message.bytes);
  const std::lock_guard lock(mutex);
  item->under_way_at[from] = Clock::now();
}

// ---- the thread that called build()

// Once everybody has looked and said so. Everything is shared out, also what is there already: so all compute the same,
// and what is there is skipped.
void BuildFarm::State::share_out() {
  std::vector<Builder> builders;
  for (size_t i = 0; i < peers.size(); ++i) {
    const bool is_self = static_cast<int>(i) == self;
    const Peer& peer = peers[i];
    if (!is_self && !peer.gone && !peer.said_hello) return;
    builders.push_back({is_self ? options.cores : peer.gone || !peer.same_compiler ? 0 : peer.cores});
  }
  std::vector<BuildItem> whats;
  for (const Item& item : items) whats.push_back({item.what.key, {}, item.what.seconds, item.what.users});
  own_share = share_builds(whats, builders)[static_cast<size_t>(self)];
  shared = true;
}

bool BuildFarm::State::everybody_done() const {
  for (size_t i = 0; i < peers.size(); ++i)
    if (static_cast<int>(i) != self && !peers[i].gone && !peers[i].done) return false;
  return said_done;
}

// After every change: what follows from it.
void BuildFarm::State::go_on() {
  std::vector<FarmMessage> messages;
  std::vector<std::pair<int, Digest>> wanted;
  {
    const std::lock_guard lock(mutex);
    for (Item& item : items) {
      // The directory did not have it.
      if (!item.needed || item.here || item.asked || item.at.empty()) continue;
      item.asked = *item.at.begin();
      wanted.emplace_back(*item.asked, item.what.key);
    }
    Peer& own = peers[static_cast<size_t>(self)];
    if (looked_at && !std::exchange(own.said_hello, true)) {
      // First what is there, so that whoever has heard the hello builds none of it.
      for (const Item& item : items)
        if (item.here) messages.push_back({.kind = Kind::kBuilt, .key = item.what.key});
      messages.push_back({.kind = Kind::kHello, .cores = options.cores, .compiler = compiler.identity()});
    }
    if (own.said_hello && !shared) share_out();
    const bool complete = std::ranges::all_of(items, [](const Item& item) { return item.here || !item.needed; });
    if (own.said_hello && complete && !std::exchange(said_done, true)) messages.push_back({.kind = Kind::kDone});
    if (everybody_done()) ending = true;
    changed.notify_all();
  }
  for (const auto& [builder, key] : wanted) link->send(builder, {.kind = Kind::kWanted, .key = key});
  for (const FarmMessage& message : messages) send_to_all(message);
}

void BuildFarm::State::report_progress() {
  if (!options.progress) return;
  FarmProgress progress;
  {
    const std::lock_guard lock(mutex);
    double all = 0, done = 0;
    Clock::time_point oldest = Clock::time_point::max();
    for (const Item& item : items) {
      all += item.what.seconds;
      if (item.somewhere()) {
        ++progress.done;
        done += item.what.seconds;
      } else if (item.under_way && *item.under_way < oldest) {
        oldest = *item.under_way;
        progress.building = item.what.source.name;
      }
    }
    progress.total = items.size();
    progress.fraction = progress.done == progress.total ? 1 : all > 0 ? done / all : 0;
    const size_t state = 2 * progress.done + !progress.building.empty();
    if (reported == state && Clock::now() - reported_at < kReportPeriod) return;
    reported = state;
    reported_at = Clock::now();
  }
  options.progress(progress);
}

Result<FarmReport> BuildFarm::State::run() {
  const size_t useful = std::min(static_cast<size_t>(options.cores), items.size());
  for (size_t i = 0; i < useful; ++i) threads.emplace_back([this] { work(); });
  while (true) {
    go_on();
    report_progress();
    {
      std::unique_lock lock(mutex);
      if (ending) break;
      if (!link) changed.wait_for(lock, kLook);
    }
    if (!link) continue;
    Result<std::optional<ReceivedMessage>> received = link->receive(kLook);
    if (received.has_error()) {
      set_failure(std::move(received).error());
    } else if (*received) {
      handle(std::move(**received));
    }
  }
  const std::lock_guard lock(mutex);
  if (failure) return *failure;
  report.seconds = seconds_since(begin);
  return report;
}

BuildFarm::BuildFarm(KernelCache& cache, Compiler& compiler, FarmLink* link, FarmOptions options)
    : state_(std::make_unique<State>(cache, compiler, link, std::move(options))) {}

BuildFarm::~BuildFarm() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->ending = true;
    state_->changed.notify_all();
  }
  for (std::thread& thread : state_->threads) thread.join();
}

Result<FarmReport> BuildFarm::build(std::span<const std::vector<KernelManifest>> of_builders) {
  State& state = *state_;
  if (of_builders.size() != state.peers.size())
    return invalid(fmt::format("manifests of {} hosts for a farm of {}", of_builders.size(), state.peers.size()));
  {
    const std::lock_guard lock(state.mutex);
    state.list(of_builders);
  }
  return state.run();
}

void BuildFarm::fail(Error why) {
  state_->send_to_all({.kind = Kind::kFailed, .error = why});
  state_->set_failure(std::move(why));
}

void refuse_to_build(FarmLink& link, const Error& why) {
  for (int builder = 0; builder < link.builders(); ++builder)
    if (builder != link.builder()) link.send(builder, {.kind = Kind::kFailed, .error = why});
}

}  // namespace plait::jit
