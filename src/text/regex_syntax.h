// Regexes of tokenizer files are written for Oniguruma (tokenizer.json) or Rust's regex (tiktoken). This turns them
// into PCRE2's syntax with the same meaning.
//
// What differs and is rewritten: \s, \w and \b (Unicode properties here), \v, \u, script names (PCRE2 would take script
// extensions), nested classes and class intersections ("&&", which become lookaheads). Only constructs that are known
// to mean the same are let through; back references, named groups, conditions and verbs are refused by name.
// Pure function.
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"

namespace plait {

// `pattern` is well-formed UTF-8. kUnsupported names the construct.
Result<std::string> pcre2_syntax(std::string_view pattern);

}  // namespace plait
