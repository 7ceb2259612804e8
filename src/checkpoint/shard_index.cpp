#include "checkpoint/shard_index.h"

#include "base/json.h"

namespace plait {
namespace {

constexpr std::string_view kSuffix = ".safetensors";
constexpr size_t kMaxNameBytes = 255;

Status check_shard_name(std::string_view name) {
  const auto refuse = [&](std::string_view why) {
    return corrupt(fmt::format("shard {} {}", json::describe(boost::json::value(name)), why));
  };
  if (name.find('/') != name.npos || name.find('\\') != name.npos)
    return refuse("is a path; a shard must lie in the folder of the index");
  if (name.find('\0') != name.npos) return refuse("has a zero byte in its name");
  if (name.size() > kMaxNameBytes) return refuse("has too long a name");
  if (name.size() <= kSuffix.size() || !name.ends_with(kSuffix)) return refuse("is not called *.safetensors");
  return {};
}

// Whether `target` is a blob of the hub-cache repository whose snapshot `folder` is. Both are canonical.
bool is_blob_of_snapshot(const std::filesystem::path& folder, const std::filesystem::path& target) {
  return folder.parent_path().filename() == "snapshots" &&
         target.parent_path() == folder.parent_path().parent_path() / "blobs";
}

}  // namespace

Result<ShardIndex> parse_shard_index(const boost::json::object& index) {
  const json::Fields fields(index, ErrorKind::kCorrupt);
  PLAIT_ASSIGN_OR_RETURN(const auto weight_map, fields.object("weight_map"));
  if (!weight_map) return fields.error("weight_map", "is missing");
  if (weight_map->raw().empty()) return fields.error("weight_map", "is empty");
  ShardIndex result;
  for (const auto& [tensor, shard] : weight_map->raw()) {
    const boost::json::string* name = shard.if_string();
    if (!name) return weight_map->error(tensor, fmt::format("must be a file name, not {}", json::describe(shard)));
    if (Status status = check_shard_name(*name); status.has_error())
      return weight_map->error(tensor, status.error().message);
    result.shard_of.emplace(tensor, *name);
  }
  return result;
}

Result<std::filesystem::path> find_shard(const std::filesystem::path& folder, const std::string& name) {
  const std::filesystem::path file = folder / name;
  std::error_code error;
  const auto status = std::filesystem::symlink_status(file, error);
  if (!std::filesystem::exists(status)) return not_found(fmt::format("{}: no such file", file.string()));
  if (!std::filesystem::is_symlink(status)) return file;

  const auto target = std::filesystem::canonical(file, error);
  if (error) return not_found(fmt::format("{}: the symbolic link leads nowhere: {}", file.string(), error.message()));
  const auto home = std::filesystem::canonical(folder, error);
  if (error) return io_error(fmt::format("{}: cannot be resolved", folder.string()), error.value());
  if (target.parent_path() == home || is_blob_of_snapshot(home, target)) return target;
  return corrupt(
      fmt::format("{}: a symbolic link that leaves the folder (to {}); put the file itself, or a hard link, there",
                  file.string(), target.string()));
}

}  // namespace plait
