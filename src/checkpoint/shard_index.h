// model.safetensors.index.json: which shard holds which tensor. Pure functions, apart from find_shard, which looks at
// the file system.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>

#include <boost/json/object.hpp>

#include "base/error.h"

namespace plait {

struct ShardIndex {
  std::map<std::string, std::string, std::less<>> shard_of;  // tensor name -> file name
};

// Every shard's name must be that of a file, not of a path, and end in .safetensors. Errors: kCorrupt.
Result<ShardIndex> parse_shard_index(const boost::json::object& index);

// The file that `name` means in `folder`. A symbolic link may lead to another file of the same folder or, from a
// snapshot of the hub cache, to a blob of the same repository (<repository>/snapshots/<revision>/name ->
// <repository>/blobs/...); one that leads anywhere else is refused. Errors: kNotFound, kCorrupt, kIo.
Result<std::filesystem::path> find_shard(const std::filesystem::path& folder, const std::string& name);

}  // namespace plait
