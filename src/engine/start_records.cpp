#include "engine/start_records.h"

#include <algorithm>

#include "base/field_lists.h"
#include "base/units.h"

namespace plait {
namespace {

constexpr const char* kNames[] = {"meeting",     "memory",  "weights", "kernels", "built",  "ranks",
                                  "first touch", "capture", "probe",   "ready",   "serving"};

constexpr auto kHostNote = [](auto& io, auto& m) {
  io.sequence(m.records, kStartRecordBytes,
              [](auto& element_io, auto& record) { describe_start_record(element_io, record); });
  io(m.compiles_after_ready);
};

std::string amount(const StartRecord& record) {
  if (record.total == 0) return "";
  if (record.phase == StartPhase::kWeights)
    return fmt::format(" ({} of {})", format_bytes(record.done), format_bytes(record.total));
  return fmt::format(" ({} of {})", record.done, record.total);
}

}  // namespace

const char* name_of(StartPhase phase) {
  return kNames[static_cast<size_t>(phase)];
}

std::string summary(std::span<const StartRecord> records) {
  const StartRecord* slowest = nullptr;
  bool several_hosts = false;
  for (const StartRecord& record : records) {
    several_hosts |= record.host != records.front().host;
    if (record.ended || record.phase == StartPhase::kServing) continue;
    // Whoever has reached an agreement waits for those that have not.
    const bool further_back = slowest && record.phase < slowest->phase;
    const bool longer = slowest && record.phase == slowest->phase && record.seconds > slowest->seconds;
    if (!slowest || further_back || longer) slowest = &record;
  }
  if (!slowest) return "";
  return fmt::format("{}{}{}{}{}", name_of(slowest->phase), slowest->item.empty() ? "" : ": ", slowest->item,
                     amount(*slowest), several_hosts ? fmt::format(", host {}", slowest->host) : "");
}

std::vector<std::string> describe(std::span<const StartRecord> records) {
  std::vector<std::string> lines;
  for (const StartRecord& record : records) {
    if (record.phase == StartPhase::kServing) return {};
    if (record.ended) continue;
    const int32_t last_rank = record.first_rank + record.ranks - 1;
    const std::string what = record.item + amount(record);
    lines.push_back(fmt::format("host {} ({}) has been in {} for {}{}{}", record.host,
                                record.ranks == 1 ? fmt::format("rank {}", record.first_rank)
                                                  : fmt::format("ranks {} to {}", record.first_rank, last_rank),
                                name_of(record.phase), format_seconds(record.seconds), what.empty() ? "" : ": ", what));
  }
  return lines;
}

std::vector<StartRecord> aged(std::vector<StartRecord> records, std::chrono::steady_clock::time_point then) {
  const std::chrono::duration<double> age = std::chrono::steady_clock::now() - then;
  for (StartRecord& record : records)
    if (!record.ended) record.seconds += age.count();
  return records;
}

std::string encode(const HostNote& note) {
  WriteFields write;
  kHostNote(write, note);
  return std::move(write.out).take();
}

Result<HostNote> decode_host_note(std::string_view bytes) {
  return decode_with<HostNote>(bytes, kHostNote);
}

}  // namespace plait
