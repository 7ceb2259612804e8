// Model names to folders: resolve_model_path of checkpoint.h.
#include <fstream>
#include <iomanip>

#include "base/environment.h"
#include "checkpoint/checkpoint.h"

namespace plait {
namespace {

constexpr size_t kMaxNameBytes = 96;  // of an organisation, a model, a revision: the hub's own limit

// In the order in which the hub's own client looks.
std::filesystem::path hub_cache_folder() {
  for (const Variable variable : {Variable::kHfHubCache, Variable::kHuggingfaceHubCache})
    if (const auto folder = environment(variable)) return *folder;
  if (const auto home = environment(Variable::kHfHome)) return std::filesystem::path(*home) / "hub";
  if (const auto cache = environment(Variable::kXdgCacheHome))
    return std::filesystem::path(*cache) / "huggingface" / "hub";
  return std::filesystem::path(environment(Variable::kHome).value_or("/")) / ".cache" / "huggingface" / "hub";
}

bool is_plain_name(std::string_view name) {
  const auto plain = [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '_' || c == '.'; };
  return !name.empty() && name.size() <= kMaxNameBytes && name.front() != '.' && name.front() != '-' &&
         name.find("..") == name.npos && std::all_of(name.begin(), name.end(), plain);
}

// "organisation/model" or "model"; anything else can only be meant as a path.
bool is_hub_id(std::string_view model) {
  const size_t slash = model.find('/');
  if (slash == model.npos) return is_plain_name(model);
  return is_plain_name(model.substr(0, slash)) && is_plain_name(model.substr(slash + 1));
}

// The revision that refs/main of a cached repository names; empty if there is none.
std::string main_revision(const std::filesystem::path& repository) {
  std::ifstream file(repository / "refs" / "main");
  std::string revision;
  file >> std::setw(kMaxNameBytes + 1) >> revision;
  return is_plain_name(revision) ? revision : std::string();
}

}  // namespace

Result<std::filesystem::path> resolve_model_path(const std::string& model) {
  std::error_code error;
  const auto status = std::filesystem::status(model, error);
  if (std::filesystem::is_directory(status)) return std::filesystem::path(model);
  if (std::filesystem::exists(status))
    return invalid(fmt::format("model path {}: give the folder that holds config.json, not a file", model));
  if (!is_hub_id(model)) return not_found(fmt::format("model path {}: no such folder", model));

  std::string folder_name = "models--" + model;
  if (const size_t slash = folder_name.find('/'); slash != folder_name.npos) folder_name.replace(slash, 1, "--");
  const auto cache = hub_cache_folder();
  const auto repository = cache / folder_name;
  if (const std::string revision = main_revision(repository); !revision.empty()) {
    if (auto snapshot = repository / "snapshots" / revision; std::filesystem::is_directory(snapshot, error))
      return snapshot;
  }
  return not_found(fmt::format("model {}: neither a folder nor in the hub cache {}; download it with: hf download {}",
                               model, cache.string(), model));
}

}  // namespace plait
