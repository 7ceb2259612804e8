// Who made a file: names a process so that another one can tell later, perhaps on another host, whether it still runs.
//
// A process number means something only within one table of processes: containers on one host have tables of their own,
// and numbers are given out again, also after a reboot. So the name holds the table (boot id and pid namespace), the
// number and the time at which the process began. Pure functions but for reading /proc; safe from any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <sys/types.h>

namespace plait::jit {

struct ProcessIdentity {
  std::string host;   // for people only
  std::string table;  // 16 hexadecimal digits; equal where process numbers can be compared
  pid_t pid = 0;
  uint64_t start_ticks = 0;  // since the host's boot

  bool operator==(const ProcessIdentity&) const = default;
};

// Read anew after each fork.
const ProcessIdentity& this_process();

// "TABLE-PID-START", for file names, and back (without a host).
std::string to_token(const ProcessIdentity& process);
std::optional<ProcessIdentity> parse_token(std::string_view token);

enum class Life {
  kRunning,
  kEnded,    // for certain: there is no such process here any more
  kUnknown,  // of another table, or nobody lets us see
};
Life life_of(const ProcessIdentity& process);

}  // namespace plait::jit
