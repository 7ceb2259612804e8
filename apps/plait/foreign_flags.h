// Flags of SGLang that plait does not act on: a start script written for SGLang either works unchanged or learns in one
// line what is not here yet. Pure functions.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace plait::app {

// `arguments`: what was left on the command line after every known flag, in order. `known`: names of known flags, for
// suggestions. Returns a note per flag that was accepted without effect. kInvalid: an unknown flag (with the nearest
// known name) or a stray word; kUnsupported: a flag of SGLang with a value that needs something plait does not have.
Result<std::vector<std::string>> judge_foreign_flags(const std::vector<std::string>& arguments,
                                                     const std::vector<std::string>& known);

// The name in `known` with the smallest edit distance to `word`, empty if none is near.
std::string nearest_name(std::string_view word, const std::vector<std::string>& known);

}  // namespace plait::app
