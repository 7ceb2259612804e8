#include "scheduler/page_pool.h"

#include "base/assert.h"

namespace plait {

PagePool::PagePool(int64_t pages) : taken_(static_cast<size_t>(pages), false) {
  free_.reserve(taken_.size());
  for (int64_t page = pages - 1; page >= 0; --page) free_.push_back(static_cast<int32_t>(page));
}

void PagePool::allocate(int64_t count, std::vector<int32_t>& pages) {
  PLAIT_ASSERT(count <= free(), "more KV pages asked than are free");
  for (int64_t i = 0; i < count; ++i) {
    pages.push_back(free_.back());
    taken_[static_cast<size_t>(free_.back())] = true;
    free_.pop_back();
  }
}

void PagePool::release(std::span<const int32_t> pages) {
  for (const int32_t page : pages) {
    PLAIT_ASSERT(taken_.at(static_cast<size_t>(page)), "a KV page was released twice");
    taken_[static_cast<size_t>(page)] = false;
    free_.push_back(page);
  }
}

}  // namespace plait
