// The text of model.safetensors.index.json. Whatever is accepted names files, not paths.
#include "base/assert.h"
#include "base/json.h"
#include "checkpoint/shard_index.h"
#include "checkpoint/tensor_names.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto object = plait::json::parse_object({reinterpret_cast<const char*>(data), size});
  if (object.has_error()) return 0;
  const auto index = plait::parse_shard_index(*object);
  if (index.has_error()) {
    PLAIT_ASSERT(!index.error().message.empty(), "an error says what is wrong");
    return 0;
  }
  std::vector<std::string> names;
  for (const auto& [tensor, shard] : index->shard_of) {
    const std::filesystem::path path(shard);
    PLAIT_ASSERT(!path.has_parent_path() && path.is_relative(), "a shard lies in the folder of the index");
    PLAIT_ASSERT(path.filename() == path && shard.find('\0') == shard.npos, "a shard is a file's name");
    names.push_back(tensor);
  }
  PLAIT_ASSERT(!plait::fold_tensor_names(names).empty(), "names do not get lost");
  return 0;
}
