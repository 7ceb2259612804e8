#include "engine/kv_pool.h"

#include "base/assert.h"

namespace plait {

int64_t kv_rows_per_layer(const KvComponent& component, int64_t pages, int64_t page_tokens, int64_t sequences) {
  switch (component.growth) {
    case KvGrowth::kPerToken:
      PLAIT_ASSERT(page_tokens % component.tokens_per_row == 0, "a page holds whole rows");
      return pages * (page_tokens / component.tokens_per_row);
    case KvGrowth::kWindow:
      return sequences * component.window_tokens;
    case KvGrowth::kPerSequence:
      return sequences * component.rows_per_sequence;
  }
  return 0;
}

KvPool::KvPool(const KvSpec& spec, int64_t pages, int64_t page_tokens, int64_t sequences) {
  memory_.pages = pages;
  memory_.page_tokens = page_tokens;
  for (const KvComponent& component : spec.components) {
    const int64_t layer_bytes = kv_rows_per_layer(component, pages, page_tokens, sequences) * component.row_bytes();
    Buffer& buffer = buffers_.emplace_back(component.layers * layer_bytes);
    memory_.components.push_back({buffer.as<std::byte>(), layer_bytes});
  }
}

size_t KvPool::size_bytes() const {
  size_t bytes = 0;
  for (const Buffer& buffer : buffers_) bytes += buffer.size_bytes();
  return bytes;
}

}  // namespace plait
