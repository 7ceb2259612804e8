#include "checkpoint/checkpoint.h"

#include <set>

#include "base/json.h"
#include "checkpoint/mapped_file.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/shard_index.h"

namespace plait {
namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
// 140,000 tensors (Kimi-K2) take 13 MB.
constexpr json::Limits kIndexLimits = {.bytes = size_t{128} << 20, .depth = 8};

Error nothing_to_open(const std::filesystem::path& folder) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const auto extension = entry.path().extension();
    if (extension == ".bin" || extension == ".pt" || extension == ".pth" || extension == ".gguf")
      return unsupported(
          fmt::format("{}: the weights are in {}; only safetensors are read. Convert the checkpoint, or "
                      "download its safetensors files",
                      folder.string(), entry.path().filename().string()));
  }
  return not_found(fmt::format("{}: neither {} nor {} is there", folder.string(), kSingleFile, kIndexFile));
}

}  // namespace

struct Checkpoint::State {
  std::vector<MappedFile> files;
  std::map<std::string, StoredTensor, std::less<>> tensors;
  size_t total_bytes = 0;

  // Adds the tensors of one shard.
  Status add(const std::filesystem::path& folder, const std::string& name) {
    PLAIT_ASSIGN_OR_RETURN(const std::filesystem::path path, find_shard(folder, name));
    PLAIT_ASSIGN_OR_RETURN(MappedFile file, MappedFile::open(path));
    auto entries = parse_safetensors(file.bytes());
    if (entries.has_error()) return std::move(entries).error().within((folder / name).string());
    for (SafetensorsEntry& entry : *entries) {
      StoredTensor tensor;
      tensor.dtype = entry.dtype;
      tensor.shape = std::move(entry.shape);
      tensor.data = file.bytes().data() + entry.begin_bytes;
      tensor.size_bytes = entry.end_bytes - entry.begin_bytes;
      tensor.file = name;
      total_bytes += tensor.size_bytes;
      const auto [at, is_new] = tensors.emplace(std::move(entry.name), std::move(tensor));
      if (!is_new)
        return corrupt(fmt::format("{}: tensor \"{}\" is both in {} and in {}", folder.string(), at->first,
                                   at->second.file, name));
    }
    files.push_back(std::move(file));
    return {};
  }

  // The index and the shards must tell the same.
  Status compare(const std::filesystem::path& folder, const ShardIndex& index) const {
    for (const auto& [name, shard] : index.shard_of) {
      const auto tensor = tensors.find(name);
      if (tensor == tensors.end() || tensor->second.file != shard)
        return corrupt(fmt::format("{}: tensor \"{}\" should be in {}, but {}", (folder / kIndexFile).string(), name,
                                   shard, tensor == tensors.end() ? "is not" : "is in " + tensor->second.file));
    }
    for (const auto& [name, tensor] : tensors) {
      if (!index.shard_of.contains(name))
        return corrupt(
            fmt::format("{}: tensor \"{}\" of {} is not listed", (folder / kIndexFile).string(), name, tensor.file));
    }
    return {};
  }
};

Checkpoint::Checkpoint(std::unique_ptr<State> state) : state_(std::move(state)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

Result<Checkpoint> Checkpoint::open(const std::filesystem::path& folder) {
  auto state = std::make_unique<State>();
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error))
    return not_found(fmt::format("{}: not a folder with a checkpoint", folder.string()));
  if (std::filesystem::exists(std::filesystem::symlink_status(folder / kSingleFile, error))) {
    PLAIT_RETURN_IF_ERROR(state->add(folder, kSingleFile));
    return Checkpoint(std::move(state));
  }
  if (!std::filesystem::exists(folder / kIndexFile, error)) return nothing_to_open(folder);

  PLAIT_ASSIGN_OR_RETURN(const auto object, json::read_object_file(folder / kIndexFile, kIndexLimits));
  auto index = parse_shard_index(object);
  if (index.has_error()) return std::move(index).error().within((folder / kIndexFile).string());
  std::set<std::string> shards;
  for (const auto& [name, shard] : index->shard_of) shards.insert(shard);
  for (const std::string& shard : shards) {
    auto added = state->add(folder, shard);
    if (added.has_error() && added.error().kind == ErrorKind::kNotFound)
      return std::move(added).error().within(
          fmt::format("the index lists {} shards, but one is missing; download the checkpoint again", shards.size()));
    PLAIT_RETURN_IF_ERROR(std::move(added));
  }
  PLAIT_RETURN_IF_ERROR(state->compare(folder, *index));
  return Checkpoint(std::move(state));
}

const StoredTensor* Checkpoint::find(std::string_view name) const {
  const auto at = state_->tensors.find(name);
  return at == state_->tensors.end() ? nullptr : &at->second;
}

const std::map<std::string, StoredTensor, std::less<>>& Checkpoint::tensors() const {
  return state_->tensors;
}

size_t Checkpoint::total_bytes() const {
  return state_->total_bytes;
}

void Checkpoint::release(const StoredTensor& tensor) const {
  MappedFile::release({tensor.data, tensor.size_bytes});
}

}  // namespace plait
