// Every environment variable that plait looks at. Flags are the interface; variables are for debugging and for folders
// that other programs share. `plait check --env` prints this table.
//
// Plain reads of the process environment, which nothing in plait changes: safe from any thread.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace plait {

enum class Variable {
  kHfHubCache,
  kHuggingfaceHubCache,
  kHfHome,
  kXdgCacheHome,
  kHome,
  kNvrtc,
  kRehearseKernels,
  kRehearseDelay
};

struct VariableInfo {
  Variable variable;
  const char* name;
  const char* meaning;
};
std::span<const VariableInfo> environment_registry();

// Absent when unset or empty.
std::optional<std::string> environment(Variable variable);

}  // namespace plait
