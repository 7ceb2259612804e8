// A checkpoint on disk: one or more safetensors files seen as one set of named tensors.
//
// A Checkpoint owns the memory maps; the tensors it hands out point into them and live as long as it does. Opening
// reads headers only. Const after opening, so any thread may look tensors up and read them.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "tensor/dtype.h"

namespace plait {

struct StoredTensor {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;  // row-major, little-endian, not necessarily aligned
  size_t size_bytes = 0;
  std::string file;  // name of the shard, for messages
};

class Checkpoint {
 public:
  // `folder` holds model.safetensors, or model.safetensors.index.json and its shards. Every header is validated
  // (safetensors.h); a shard named by the index must lie in the folder itself and hold what the index says.
  static Result<Checkpoint> open(const std::filesystem::path& folder);

  const StoredTensor* find(std::string_view name) const;  // nullptr: no such tensor
  const std::map<std::string, StoredTensor, std::less<>>& tensors() const;
  size_t total_bytes() const;  // of all tensors
  // Tells the kernel that the range of one tensor will not be read again (its pages may go).
  void release(const StoredTensor& tensor) const;

  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

 private:
  struct State;
  explicit Checkpoint(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// `model` is a folder, or a hub id ("deepseek-ai/DeepSeek-V2-Lite") whose snapshot is in the local hub cache
// (HF_HUB_CACHE, HF_HOME,
// ~/.cache/huggingface/hub; refs/main names the snapshot). kNotFound otherwise; the message says how to download it.
Result<std::filesystem::path> resolve_model_path(const std::string& model);

}  // namespace plait
