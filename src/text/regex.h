// Regular expressions of tokenizer files, matched by PCRE2 (just-in-time compiled where the machine allows it).
//
// A Regex is const once made: any thread may search with it, each with its own RegexScratch. Work per search is
// bounded: a pattern that backtracks without end gives up instead. Properties of characters are those of PCRE2's
// Unicode (14 in version 10.42, as in the libraries of the time when the published models were trained): younger
// characters count as unassigned.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/error.h"

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;
struct pcre2_real_match_context_8;
struct pcre2_real_jit_stack_8;

namespace plait {

// Memory that searches need. One thread at a time.
class RegexScratch {
 public:
  RegexScratch();

 private:
  friend class Regex;
  struct Free {
    void operator()(pcre2_real_match_data_8* p) const;
    void operator()(pcre2_real_match_context_8* p) const;
    void operator()(pcre2_real_jit_stack_8* p) const;
  };
  std::unique_ptr<pcre2_real_match_data_8, Free> match_data_;
  std::unique_ptr<pcre2_real_match_context_8, Free> context_;
  std::unique_ptr<pcre2_real_jit_stack_8, Free> stack_;
};

enum class RegexOutcome {
  kFound,
  kNone,
  kGaveUp,  // too much backtracking
};
struct RegexMatch {
  RegexOutcome outcome = RegexOutcome::kNone;
  size_t begin = 0, end = 0;  // bytes
};

class Regex {
 public:
  // `pattern` as tokenizer files write it (regex_syntax.h). kUnsupported names what is not supported, kCorrupt what is
  // no regex.
  static Result<Regex> compile(std::string_view pattern);
  // Matches exactly this text.
  static Result<Regex> compile_literal(std::string_view text);

  // The first match that begins at or behind `from` in `subject` (well-formed UTF-8, `from` on a character's border).
  // Lookbehind sees all of `subject`.
  RegexMatch find(std::string_view subject, size_t from, RegexScratch& scratch) const;

 private:
  struct Free {
    void operator()(pcre2_real_code_8* p) const;
  };
  static Result<Regex> compile_pcre2(std::string_view pattern, uint32_t options, std::string_view as_written);

  std::unique_ptr<pcre2_real_code_8, Free> code_;
  bool just_in_time_ = false;
};

}  // namespace plait
