#include "base/environment.h"

#include <cstdlib>

#include "base/assert.h"

namespace plait {
namespace {

constexpr VariableInfo kVariables[] = {
    {Variable::kHfHubCache, "HF_HUB_CACHE", "folder of downloaded checkpoints, for hub ids in --model-path"},
    {Variable::kHfHome, "HF_HOME", "its subfolder `hub` is that folder, where HF_HUB_CACHE is unset"},
    {Variable::kXdgCacheHome, "XDG_CACHE_HOME", "its subfolder `huggingface/hub`, where both are unset"},
    {Variable::kHome, "HOME", "its subfolder `.cache/huggingface/hub`, where all of them are unset"},
};

}  // namespace

std::span<const VariableInfo> environment_registry() {
  return kVariables;
}

std::optional<std::string> environment(Variable variable) {
  for (const VariableInfo& info : kVariables) {
    if (info.variable != variable) continue;
    const char* value = std::getenv(info.name);
    if (!value || !*value) return std::nullopt;
    return value;
  }
  PLAIT_ASSERT(false, "a variable without a row in the registry");
}

}  // namespace plait
