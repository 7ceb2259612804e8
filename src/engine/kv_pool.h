// The KV memory of one rank, made from what the model's attention kinds say they remember.
//
// Owns one block per component. Which pages and sequence slots are in use is the scheduler's business. Memory is backed
// by the operating system when it is first written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/kv_spec.h"
#include "model/model.h"
#include "tensor/buffer.h"

namespace plait {

class KvPool {
 public:
  // `sequences`: how many may be alive at once; sizes the kinds that keep something per sequence.
  KvPool(const KvSpec& spec, int64_t pages, int64_t page_tokens, int64_t sequences);

  const KvMemory& memory() const { return memory_; }
  size_t size_bytes() const;

 private:
  std::vector<Buffer> buffers_;
  KvMemory memory_;
};

// Rows of one component and layer in a pool of that size.
int64_t kv_rows_per_layer(const KvComponent& component, int64_t pages, int64_t page_tokens, int64_t sequences);

}  // namespace plait
