// Numbers of free KV pages.
//
// A page has exactly one owner at a time: this pool (free), one request (private: it alone reads and writes it), or the
// radix cache (complete, read-only, shared by the requests that lock it). Ownership moves by allocate and release here
// and by RadixCache::insert; nothing is counted twice, so free + private + cached pages == total at every moment. The
// memory itself belongs to the engine. One thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace plait {

class PagePool {
 public:
  explicit PagePool(int64_t pages);

  int64_t total() const { return static_cast<int64_t>(taken_.size()); }
  int64_t free() const { return static_cast<int64_t>(free_.size()); }

  // Appends `count` pages to `pages`. The caller has made sure that there are so many.
  void allocate(int64_t count, std::vector<int32_t>& pages);
  void release(std::span<const int32_t> pages);

 private:
  std::vector<int32_t> free_;  // a stack: what was used last is used first, its memory is warm
  std::vector<bool> taken_;    // [total], catches a page that is released twice
};

}  // namespace plait
