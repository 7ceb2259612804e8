#include "text/regex.h"

#include <new>

#include <pcre2.h>

#include "base/assert.h"
#include "text/regex_syntax.h"

namespace plait {
namespace {

// Backtracking steps per search. The patterns of published tokenizers need a few per character of one word or run of
// blanks; a hostile one stops here after some milliseconds.
constexpr uint32_t kMatchLimit = 2'000'000;
constexpr uint32_t kHeapLimit_kib = 64 << 10;
constexpr size_t kJitStackStart_bytes = 32 << 10, kJitStackLimit_bytes = 8 << 20;

// The same matches from a form that does not try each place of a long run of blanks again: if the run does not end the
// line where it is first tried, it does not from its middle either.
constexpr std::pair<std::string_view, std::string_view> kLinearForms[] = {{R"(\s+$)", R"((?<!\s)\s+$)"}};

}  // namespace

void RegexScratch::Free::operator()(pcre2_match_data* p) const {
  pcre2_match_data_free(p);
}
void RegexScratch::Free::operator()(pcre2_match_context* p) const {
  pcre2_match_context_free(p);
}
void RegexScratch::Free::operator()(pcre2_jit_stack* p) const {
  pcre2_jit_stack_free(p);
}
void Regex::Free::operator()(pcre2_code* p) const {
  pcre2_code_free(p);
}

RegexScratch::RegexScratch()
    : match_data_(pcre2_match_data_create(1, nullptr)),
      context_(pcre2_match_context_create(nullptr)),
      stack_(pcre2_jit_stack_create(kJitStackStart_bytes, kJitStackLimit_bytes, nullptr)) {
  if (!match_data_ || !context_) throw std::bad_alloc();
  pcre2_set_match_limit(context_.get(), kMatchLimit);
  pcre2_set_heap_limit(context_.get(), kHeapLimit_kib);
  if (stack_) pcre2_jit_stack_assign(context_.get(), nullptr, stack_.get());
}

Result<Regex> Regex::compile(std::string_view pattern) {
  std::string_view linear = pattern;
  for (const auto& [written, form] : kLinearForms) {
    if (pattern == written) linear = form;
  }
  PLAIT_ASSIGN_OR_RETURN(const std::string translated, pcre2_syntax(linear));
  return compile_pcre2(translated, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NO_AUTO_CAPTURE, pattern);
}

Result<Regex> Regex::compile_literal(std::string_view text) {
  return compile_pcre2(text, PCRE2_UTF | PCRE2_LITERAL, text);
}

Result<Regex> Regex::compile_pcre2(std::string_view pattern, uint32_t options, std::string_view as_written) {
  std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  if (!context) throw std::bad_alloc();
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  Regex regex;
  regex.code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), options, &error,
                                  &offset, context.get()));
  if (!regex.code_) {
    std::array<PCRE2_UCHAR, 256> message{};
    pcre2_get_error_message(error, message.data(), message.size());
    return corrupt(fmt::format("regex \"{}\": {}", as_written.substr(0, 200), reinterpret_cast<char*>(message.data())));
  }
  regex.just_in_time_ = pcre2_jit_compile(regex.code_.get(), PCRE2_JIT_COMPLETE) == 0;
  return regex;
}

RegexMatch Regex::find(std::string_view subject, size_t from, RegexScratch& scratch) const {
  const auto text = reinterpret_cast<PCRE2_SPTR>(subject.data());
  pcre2_match_data* data = scratch.match_data_.get();
  int result = PCRE2_ERROR_JIT_STACKLIMIT;
  if (just_in_time_) result = pcre2_jit_match(code_.get(), text, subject.size(), from, 0, data, scratch.context_.get());
  if (result == PCRE2_ERROR_JIT_STACKLIMIT)  // the interpreter keeps its frames on the heap
    result = pcre2_match(code_.get(), text, subject.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data,
                         scratch.context_.get());
  if (result == PCRE2_ERROR_NOMATCH) return {RegexOutcome::kNone};
  if (result < 0) return {RegexOutcome::kGaveUp};
  const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(data);
  return {RegexOutcome::kFound, offsets[0], offsets[1]};
}

}  // namespace plait
