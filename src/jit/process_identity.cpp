#include "jit/process_identity.h"

#include <cerrno>
#include <charconv>
#include <csignal>
#include <fstream>

#include <unistd.h>

#include "base/sha256.h"

namespace plait::jit {
namespace {

constexpr size_t kTableDigits = 16;
// Where /proc tells nothing: a table in which no two processes can be compared.
constexpr std::string_view kNoTable = "0000000000000000";

std::string first_word_of(const char* file) {
  std::ifstream stream(file);
  std::string word;
  stream >> word;
  return word;
}

std::string host_name() {
  char name[256] = {};
  if (gethostname(name, sizeof name - 1) != 0) return "unknown";
  return name;
}

std::string table_of_processes() {
  char name_space[64] = {};
  const ssize_t bytes = readlink("/proc/self/ns/pid", name_space, sizeof name_space);
  const std::string boot = first_word_of("/proc/sys/kernel/random/boot_id");
  if (bytes <= 0 || boot.empty()) return std::string(kNoTable);
  return to_hex(sha256(boot + std::string(name_space, static_cast<size_t>(bytes)))).substr(0, kTableDigits);
}

struct ProcessFacts {
  char state = 0;
  uint64_t start_ticks = 0;
};

// Fields 3 and 22 of /proc/PID/stat; the second, the program's name, may hold blanks and parentheses.
std::optional<ProcessFacts> facts_of(pid_t pid) {
  std::ifstream stream(fmt::format("/proc/{}/stat", pid));
  std::string text((std::istreambuf_iterator<char>(stream)), {});
  const size_t name_end = text.rfind(')');
  if (name_end == text.npos) return std::nullopt;
  const char* at = text.c_str() + name_end + 1;
  ProcessFacts facts;
  for (int field = 3; field <= 22; ++field) {
    while (*at == ' ') ++at;
    const char* end = at;
    while (*end != ' ' && *end != '\0') ++end;
    if (at == end) return std::nullopt;
    if (field == 3) facts.state = *at;
    if (field == 22 && std::from_chars(at, end, facts.start_ticks).ec != std::errc()) return std::nullopt;
    at = end;
  }
  return facts;
}

ProcessIdentity look_at_this_process() {
  ProcessIdentity self;
  self.host = host_name();
  self.table = table_of_processes();
  self.pid = getpid();
  if (const auto facts = facts_of(self.pid)) self.start_ticks = facts->start_ticks;
  return self;
}

template <typename Number>
bool parse(std::string_view text, Number& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

const ProcessIdentity& this_process() {
  static std::mutex mutex;
  static std::map<pid_t, ProcessIdentity> known;  // of this process and those it was forked from
  const std::scoped_lock lock(mutex);
  const pid_t pid = getpid();
  const auto at = known.find(pid);
  if (at != known.end()) return at->second;
  return known.emplace(pid, look_at_this_process()).first->second;
}

std::string to_token(const ProcessIdentity& process) {
  return fmt::format("{}-{}-{}", process.table, process.pid, process.start_ticks);
}

std::optional<ProcessIdentity> parse_token(std::string_view token) {
  const size_t first = token.find('-');
  const size_t second = first == token.npos ? token.npos : token.find('-', first + 1);
  if (second == token.npos || first != kTableDigits) return std::nullopt;
  ProcessIdentity process;
  process.table = token.substr(0, first);
  const bool well = parse(token.substr(first + 1, second - first - 1), process.pid) &&
                    parse(token.substr(second + 1), process.start_ticks) && process.pid > 0;
  if (!well) return std::nullopt;
  return process;
}

Life life_of(const ProcessIdentity& process) {
  const ProcessIdentity& self = this_process();
  const bool comparable = process.table == self.table && process.table != kNoTable && process.start_ticks != 0;
  if (!comparable) return Life::kUnknown;
  if (::kill(process.pid, 0) != 0 && errno == ESRCH) return Life::kEnded;
  const auto facts = facts_of(process.pid);
  if (!facts) return Life::kUnknown;  // another user's, and /proc is mounted with hidepid
  const bool ended = facts->state == 'Z' || facts->state == 'X' || facts->start_ticks != process.start_ticks;
  return ended ? Life::kEnded : Life::kRunning;
}

}  // namespace plait::jit
