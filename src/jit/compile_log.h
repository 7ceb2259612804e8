// What NVRTC and the assembler behind it (ptxas) print, taken apart. Pure functions.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "jit/compiler.h"

namespace plait::jit {

// As much of a log as an error or a cache entry carries.
inline constexpr size_t kMaxLogBytes = 16 * 1024;

// The log from its first error on, then what came before it; what is beyond kMaxLogBytes is left out, and counted.
std::string errors_first(std::string_view log);

// The resources of `entry` in what ptxas reports with -v. They are read from its words and not from the cubin's
// sections, which are not documented and have changed between releases, and do not say what was spilled.
std::optional<KernelResources> parse_resources(std::string_view log, std::string_view entry);

// The log without that report, at most kMaxLogBytes.
std::string remarks_of(std::string_view log);

}  // namespace plait::jit
