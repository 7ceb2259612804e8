// What each host does while an engine starts, as values: shown on the terminal, in /server_info and in the 503 body of
// /health, and sent from host to host.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace plait {

// In the order in which they begin. kWeights and kKernels go on beside each other.
enum class StartPhase : uint8_t {
  kMeeting,     // the hosts find each other; from here on they wait for each other without a limit
  kMemory,      // what fits
  kWeights,     //
  kKernels,     // built, or found in the cache
  kBuilt,       // agreement: every host has its weights and kernels
  kRanks,       // threads, communicators and KV pools
  kFirstTouch,  // a step of every forward mode that traffic can have
  kCapture,     // of graphs, on devices that have them
  kProbe,       // a request to each data-parallel rank by name
  kReady,       // agreement: every host is; then waits get their limit
  kServing,
};
const char* name_of(StartPhase phase);  // "first touch"

struct StartRecord {
  int32_t host = 0;
  int32_t first_rank = 0;  // its ranks
  int32_t ranks = 1;
  StartPhase phase = StartPhase::kMeeting;
  std::string item;    // what it is at: a kernel, a forward mode, a rank; may be empty
  double seconds = 0;  // in this phase; of one that has not ended, when the record was made
  uint64_t done = 0;   // items, or bytes of weights
  uint64_t total = 0;  // 0: not counted
  bool ended = false;
};

// Of those that have not ended, what the slowest host is at: "kernels: fp8_gemm_n7168 (3 of 12), host 1". Empty if all
// have.
std::string summary(std::span<const StartRecord> records);

// A line for each of them, for people: "host 1 (ranks 2 to 3) has been in kernels for 5.2 s: fp8_gemm_n7168 (3 of 12)".
// None once a host serves, since all have agreed by then.
std::vector<std::string> describe(std::span<const StartRecord> records);
// Records that were made then, as they are now if nothing has happened since.
std::vector<StartRecord> aged(std::vector<StartRecord> records, std::chrono::steady_clock::time_point then);

// What the other hosts tell the first one (World::set_note).
struct HostNote {
  std::vector<StartRecord> records;
  uint64_t compiles_after_ready = 0;
};
std::string encode(const HostNote& note);
Result<HostNote> decode_host_note(std::string_view bytes);  // kCorrupt

// For messages that hold records.
template <typename IO, typename M>
void describe_start_record(IO& io, M& m) {
  auto& [host, first_rank, ranks, phase, item, seconds, done, total, ended] = m;
  io(host);
  io(first_rank);
  io(ranks);
  io.enumerator(phase, StartPhase::kServing);
  io(item);
  io(seconds);
  io(done);
  io(total);
  io(ended);
}
inline constexpr size_t kStartRecordBytes = 3 * 4 + 1 + 8 + 3 * 8 + 1;  // at least, on the wire

}  // namespace plait
