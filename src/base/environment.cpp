#include "base/environment.h"

#include <cstdlib>

#include "base/assert.h"

namespace plait {
namespace {

constexpr VariableInfo kVariables[] = {
    {Variable::kHfHubCache, "HF_HUB_CACHE", "folder of downloaded checkpoints, where --model-path is a hub id"},
    {Variable::kHuggingfaceHubCache, "HUGGINGFACE_HUB_CACHE", "the same under its old name"},
    {Variable::kHfHome, "HF_HOME", "next in turn: its subfolder hub"},
    {Variable::kXdgCacheHome, "XDG_CACHE_HOME",
     "next in turn: its subfolder huggingface/hub; compiled kernels in plait/kernels"},
    {Variable::kHome, "HOME",
     "last: its subfolder .cache/huggingface/hub; without XDG_CACHE_HOME also .cache/plait/kernels"},
    {Variable::kRehearseKernels, "PLAIT_REHEARSE_KERNELS",
     "a GPU (h200), or a file *.json of CUDA sources: kernels that ranks without devices build while they start, as "
     "ranks on that GPU would, and never run"},
    {Variable::kRehearseDelay, "PLAIT_REHEARSE_DELAY",
     "in such a rehearsal each compile takes this many times its announced seconds longer"},
    {Variable::kNvrtc, "PLAIT_NVRTC", "libnvrtc, or a folder that has it, for compiling CUDA kernels"},
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
