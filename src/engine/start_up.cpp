#include "engine/start_up.h"

#include <algorithm>
#include <utility>

#include "base/assert.h"
#include "base/log.h"
#include "base/units.h"

namespace plait {
namespace {

constexpr std::chrono::milliseconds kTellPeriod{200};
constexpr std::chrono::seconds kLogPeriod{10};
constexpr size_t kMaxItemBytes = 256;  // all records of a host fit a note

double seconds_between(std::chrono::steady_clock::time_point begin, std::chrono::steady_clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

// What other hosts said last, made older by the time since then.
std::vector<StartRecord> records_of(const comm::NodeNote& note) {
  auto said = decode_host_note(note.text);
  if (said.has_error()) return {};
  return aged(std::move(said->records), note.received);
}

// Seconds go on by themselves.
std::string without_seconds(std::vector<StartRecord> records) {
  for (StartRecord& record : records) record.seconds = 0;
  return encode(HostNote{std::move(records)});
}

}  // namespace

StartUp::StartUp(int host, int first_rank, int ranks, StartListener* listener)
    : host_(host), first_rank_(first_rank), ranks_(ranks), listener_(listener), thread_([this] { tell(); }) {}

StartUp::~StartUp() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

void StartUp::join(std::shared_ptr<comm::World> world) {
  if (listener_) listener_->met(world);
  const std::lock_guard lock(mutex_);
  world_ = std::move(world);
}

StartUp::Entry* StartUp::find(StartPhase phase) {
  const auto at = std::ranges::find(entries_, phase, [](const Entry& entry) { return entry.record.phase; });
  return at == entries_.end() ? nullptr : &*at;
}

void StartUp::begin(StartPhase phase) {
  const std::lock_guard lock(mutex_);
  PLAIT_ASSERT(find(phase) == nullptr, "a phase begins once");
  entries_.push_back({{.host = host_, .first_rank = first_rank_, .ranks = ranks_, .phase = phase}, Clock::now()});
  news_ = true;
  changed_.notify_all();
}

void StartUp::end(StartPhase phase) {
  const std::lock_guard lock(mutex_);
  Entry& entry = *find(phase);
  if (entry.record.ended) return;
  entry.record.ended = true;
  entry.record.seconds = seconds_between(entry.since, Clock::now());
  news_ = true;
  changed_.notify_all();
}

void StartUp::enter(StartPhase phase) {
  for (const StartRecord& record : records())
    if (!record.ended) end(record.phase);
  begin(phase);
}

void StartUp::note(StartPhase phase, std::string item, uint64_t done, uint64_t total) {
  const std::lock_guard lock(mutex_);
  Entry* entry = find(phase);
  PLAIT_ASSERT(entry != nullptr, "a phase has begun before there is news of it");
  if (item.size() > kMaxItemBytes) item.resize(kMaxItemBytes);
  entry->record.item = std::move(item);
  entry->record.done = done;
  entry->record.total = total;
}

std::vector<StartRecord> StartUp::records() const {
  const std::lock_guard lock(mutex_);
  std::vector<StartRecord> records;
  for (const Entry& entry : entries_) {
    records.push_back(entry.record);
    if (!entry.record.ended) records.back().seconds = seconds_between(entry.since, Clock::now());
  }
  return records;
}

double StartUp::seconds_of(StartPhase phase) const {
  for (const StartRecord& record : records())
    if (record.phase == phase) return record.seconds;
  return 0;
}

void StartUp::serve() {
  enter(StartPhase::kServing);
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  thread_.join();
  const std::lock_guard lock(mutex_);
  world_.reset();
}

void StartUp::tell() {
  std::string told, logged;
  Clock::time_point logged_at = Clock::now();
  bool last = false;
  while (!last) {
    std::shared_ptr<comm::World> world;
    {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, kTellPeriod, [&] { return news_ || ending_; });
      news_ = false;
      last = ending_;
      world = world_;
    }
    std::vector<StartRecord> all = records();
    const std::string own = encode(HostNote{all});
    if (world)
      for (const comm::NodeNote& note : world->notes())
        for (StartRecord& record : records_of(note)) all.push_back(std::move(record));
    // For people at the terminal of this host, who see nothing of the others.
    if (const std::string at = summary(all); at != logged && Clock::now() - logged_at >= kLogPeriod) {
      log::info("starting: the slowest is at {}", at);
      logged = at;
      logged_at = Clock::now();
    }
    if (std::string now = without_seconds(all); now != std::exchange(told, now)) {
      if (world) world->set_note(own);
      if (listener_) listener_->moved(all);
    }
  }
}

bool StartUp::world_failed() const {
  const std::lock_guard lock(mutex_);
  return world_ && world_->failure().has_value();
}

// A lost host's last words are its records.
Error StartUp::explain(StartPhase phase, Error why) const {
  std::shared_ptr<comm::World> world;
  {
    const std::lock_guard lock(mutex_);
    world = world_;
  }
  if (const auto failure = world ? world->failure() : std::nullopt; failure && failure->node >= 0) {
    for (const comm::NodeNote& note : world->notes()) {
      if (note.node != failure->node) continue;
      const std::string doing = summary(records_of(note));
      if (!doing.empty()) why.message += fmt::format("; it was at {}", doing);
    }
  }
  return std::move(why).within(fmt::format("start-up, {}", name_of(phase)));
}

Status StartUp::run_row(const Row& row, const Status& so_far) {
  std::mutex mutex;
  Status first;
  const auto run_one = [&](const Phase& phase) {
    begin(phase.phase);
    Status status = phase.run(so_far);
    end(phase.phase);
    if (!status.has_error()) return;
    const std::lock_guard lock(mutex);
    if (first.has_error()) return;
    // What hosts agreed on says by itself where it comes from.
    first =
        row.agreement && !world_failed() ? std::move(status) : Status(explain(phase.phase, std::move(status).error()));
    for (const Phase& other : row.phases)
      if (&other != &phase && other.stop) other.stop(first.error());
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < row.phases.size(); ++i) threads.emplace_back([&, i] { run_one(row.phases[i]); });
  run_one(row.phases.front());
  for (std::thread& thread : threads) thread.join();
  return first;
}

Status StartUp::run(std::span<const Row> rows) {
  Status so_far;
  for (const Row& row : rows) {
    if (so_far.has_error() && !row.agreement) continue;
    Status ended = run_row(row, so_far);
    // Of a world that ended before, the phase that noticed says more than the agreement that could not be had.
    if (ended.has_error() && row.agreement) return so_far.has_error() && world_failed() ? so_far : ended;
    if (!so_far.has_error()) so_far = std::move(ended);
  }
  return so_far;
}

}  // namespace plait
