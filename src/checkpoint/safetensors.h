// The safetensors format: the header's length (8 bytes, little-endian), the header (a JSON object: tensor name ->
// dtype, shape, data_offsets), then the tensors' bytes.
//
// A pure function over the bytes of a file; copies nothing but names and shapes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "tensor/dtype.h"

namespace plait {

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  // Where its bytes lie in the file. Every byte after the header belongs to exactly one tensor.
  uint64_t begin_bytes = 0;
  uint64_t end_bytes = 0;
};

constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;  // the limit of the format's own reader

// The entries of the file with these bytes, in the order of their data. `__metadata__` is checked and dropped.
// Errors (kCorrupt; kUnsupported for a dtype that is not known) name the tensor.
Result<std::vector<SafetensorsEntry>> parse_safetensors(std::span<const std::byte> file);

}  // namespace plait
