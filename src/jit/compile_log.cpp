#include "jit/compile_log.h"

#include <charconv>

namespace plait::jit {
namespace {

template <typename Visit>
void for_each_line(std::string_view text, Visit&& visit) {
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    visit(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != text.npos;
}

// "k.cu(3): error: ...", "ptxas application ptx input, line 12; error   : ...", "ptxas fatal   : ...",
// "nvrtc: error: ...", "catastrophic error"
bool is_error(std::string_view line) {
  return contains(line, "error:") || contains(line, "error   :") || contains(line, "error :") ||
         contains(line, "fatal   :") || contains(line, "catastrophic error");
}

std::string bounded(std::string text) {
  if (text.size() <= kMaxLogBytes) return text;
  size_t end = text.rfind('\n', kMaxLogBytes);
  if (end == text.npos || end == 0) end = kMaxLogBytes;
  const size_t left_out = text.size() - end;
  text.resize(end);
  return text + fmt::format("\n... and {} bytes more", left_out);
}

void trim_end(std::string& text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ' || text.back() == '\0')) text.pop_back();
}

// The number in front of `unit`: 128 for "..., 128 bytes spill stores, ..." and " bytes spill stores".
std::optional<int32_t> number_before(std::string_view line, std::string_view unit) {
  const size_t end = line.find(unit);
  if (end == line.npos) return std::nullopt;
  size_t begin = end;
  while (begin > 0 && line[begin - 1] >= '0' && line[begin - 1] <= '9') --begin;
  int32_t value = 0;
  const auto [rest, error] = std::from_chars(line.data() + begin, line.data() + end, value);
  if (error != std::errc() || rest != line.data() + end) return std::nullopt;
  return value;
}

// Beginnings of the lines that make up ptxas's report.
bool is_report(std::string_view line) {
  return (contains(line, " bytes gmem") || contains(line, "Compiling entry function") ||
          contains(line, "Function properties for") || contains(line, " bytes stack frame") ||
          contains(line, "Compile time =") || (contains(line, "Used ") && contains(line, " registers")));
}

}  // namespace

std::string errors_first(std::string_view log) {
  std::string before, after;
  bool found = false;
  for_each_line(log, [&](std::string_view line) {
    found = found || is_error(line);
    (found ? after : before).append(line).push_back('\n');
  });
  std::string all = after + before;
  trim_end(all);
  return bounded(std::move(all));
}

std::optional<KernelResources> parse_resources(std::string_view log, std::string_view entry) {
  const std::string compiling = fmt::format("Compiling entry function '{}'", entry);
  const std::string properties = fmt::format("Function properties for {}", entry);
  bool in_entry = false, in_properties = false;
  std::optional<int32_t> registers, stack, stores, loads;
  KernelResources resources;
  for_each_line(log, [&](std::string_view line) {
    if (contains(line, "Compiling entry function")) in_entry = contains(line, compiling);
    if (contains(line, "Function properties for")) in_properties = line.ends_with(properties);
    if (in_properties && contains(line, " bytes stack frame")) {
      stack = number_before(line, " bytes stack frame");
      stores = number_before(line, " bytes spill stores");
      loads = number_before(line, " bytes spill loads");
    }
    if (in_entry && contains(line, "Used ")) {
      registers = number_before(line, " registers");
      resources.shared_bytes = number_before(line, " bytes smem").value_or(0);  // not mentioned where there is none
    }
  });
  if (!registers || !stack || !stores || !loads) return std::nullopt;
  resources.registers = *registers;
  resources.stack_bytes = *stack;
  resources.spill_store_bytes = *stores;
  resources.spill_load_bytes = *loads;
  return resources;
}

std::string remarks_of(std::string_view log) {
  std::string remarks;
  for_each_line(log, [&remarks](std::string_view line) {
    if (!is_report(line)) remarks.append(line).push_back('\n');
  });
  trim_end(remarks);
  return bounded(std::move(remarks));
}

}  // namespace plait::jit
