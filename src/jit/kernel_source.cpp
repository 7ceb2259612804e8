#include "jit/kernel_source.h"

#include "base/fields.h"

namespace plait::jit {
namespace {

constexpr size_t kMaxNameBytes = 128;  // leaves room for the key and a suffix in a file name of 255 bytes

bool is_alphanumeric(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

bool is_identifier(std::string_view text) {
  return !text.empty() && text.size() <= kMaxNameBytes && !is_digit(text.front()) &&
         std::ranges::all_of(text, is_alphanumeric);
}

// "sm_90", "sm_90a", "sm_120f"
bool is_real_architecture(std::string_view text) {
  if (!text.starts_with("sm_")) return false;
  text.remove_prefix(3);
  if (text.ends_with('a') || text.ends_with('f')) text.remove_suffix(1);
  return (text.size() == 2 || text.size() == 3) && std::ranges::all_of(text, is_digit);
}

// A line whose first characters are `#`, blanks and `include`.
bool has_include(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = text.substr(at, end - at);
    const auto skip_blanks = [&line] { line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size())); };
    skip_blanks();
    if (line.starts_with('#')) {
      line.remove_prefix(1);
      skip_blanks();
      if (line.starts_with("include")) return true;
    }
    at = end + 1;
  }
  return false;
}

// Options, by their beginnings, that are not for a source to give, and why.
struct ForbiddenOption {
  const char* prefix;
  const char* reason;
};
constexpr ForbiddenOption kForbiddenOptions[] = {
    {"-I", "a kernel includes nothing: the key would not see the files"},
    {"--include-path", "a kernel includes nothing: the key would not see the files"},
    {"-include", "a kernel includes nothing: the key would not see the files"},
    {"--pre-include", "a kernel includes nothing: the key would not see the files"},
    {"-pch", "a kernel includes nothing: the key would not see the files"},
    {"--pch", "a kernel includes nothing: the key would not see the files"},
    {"--use-pch", "a kernel includes nothing: the key would not see the files"},
    {"--create-pch", "a kernel includes nothing: the key would not see the files"},
    {"-arch", "the architecture is a field of its own"},
    {"--gpu-architecture", "the architecture is a field of its own"},
    {"-dlto", "the result is to be machine code"},
    {"--dlink-time-opt", "the result is to be machine code"},
    {"-D", "constants are a field of their own"},
    {"--define-macro", "constants are a field of their own"},
};

}  // namespace

Status validate(const KernelSource& source) {
  const auto wrong = [&source](std::string what) {
    return invalid(fmt::format("kernel '{}': {}", source.name, std::move(what)));
  };
  constexpr const char* kNotAnIdentifier = "'{}' is no {}: letters, digits and underscores, at most {} of them";
  if (!is_identifier(source.name)) return wrong(fmt::format(kNotAnIdentifier, source.name, "name", kMaxNameBytes));
  if (!is_identifier(source.entry)) return wrong(fmt::format(kNotAnIdentifier, source.entry, "entry", kMaxNameBytes));
  for (const auto& [name, value] : source.constants)
    if (!is_identifier(name)) return wrong(fmt::format(kNotAnIdentifier, name, "constant", kMaxNameBytes));
  if (!is_real_architecture(source.architecture))
    return wrong(fmt::format("'{}' is no real architecture, such as sm_90a", source.architecture));
  if (source.text.empty()) return wrong("its text is empty");
  if (source.text.find('\0') != source.text.npos) return wrong("its text has a NUL byte");
  if (has_include(source.text)) return wrong("its text has an #include; the key would not see what it includes");
  for (const std::string& option : source.options) {
    if (option.empty() || option.find('\0') != option.npos) return wrong("an option is empty or has a NUL byte");
    for (const ForbiddenOption& forbidden : kForbiddenOptions)
      if (option.starts_with(forbidden.prefix)) return wrong(fmt::format("option '{}': {}", option, forbidden.reason));
  }
  return {};
}

std::string translation_unit(const KernelSource& source) {
  std::string unit;
  for (const auto& [name, value] : source.constants) {
    const bool fits = value >= std::numeric_limits<int>::min() && value <= std::numeric_limits<int>::max();
    if (fits)
      unit += fmt::format("[[maybe_unused]] constexpr int {} = {};\n", name, value);
    else if (value == std::numeric_limits<int64_t>::min())  // has no literal of its own
      unit += fmt::format("[[maybe_unused]] constexpr long long {} = {}LL - 1;\n", name, value + 1);
    else
      unit += fmt::format("[[maybe_unused]] constexpr long long {} = {}LL;\n", name, value);
  }
  unit += "#line 1\n";
  unit += source.text;
  return unit;
}

Digest kernel_key(const KernelSource& source, const CompilerIdentity& compiler) {
  // Lengths before texts and counts before lists: no two sources share a form.
  FieldWriter form;
  form.number<uint32_t>(kKernelFormat);
  form.text(source.text);
  form.number<uint64_t>(source.constants.size());
  for (const auto& [name, value] : source.constants) {
    form.text(name);
    form.number<int64_t>(value);
  }
  form.text(source.entry);
  form.sequence(source.options, [&form](const std::string& option) { form.text(option); });
  form.text(source.architecture);
  form.text(compiler.name);
  form.text(compiler.version);
  return sha256(std::move(form).take());
}

}  // namespace plait::jit
