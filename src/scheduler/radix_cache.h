// Prefix cache: a radix tree over the rows of KV pages, page by page.
//
// A path from the root spells a token prefix; its nodes own the pages that hold the prefix's KV rows. Only complete
// pages are in the tree, and they are never written again. A request locks the node its prefix ends at, which keeps the
// whole path; pages that nobody locks are evictable, least recently used leaf first, last page first.
//
// What of generated tokens can be reused: the bits of a KV row depend on the tokens before it and on the form in which
// its attention was computed, expanded below the request's prompt length and absorbed from there (StepSequence). The
// key of a row says both, so a hit is always exact: prompt pages are found by everybody, pages with generated rows only
// by the same prompt going on with the same tokens (after a retraction). A follow-up turn that sends an old answer back
// computes those tokens anew, in expanded form, as a server without any cache would; prefill is cheap next to what
// decoding them has cost, and no text ever depends on what happened to be cached.
//
// Pages are also the granules of reuse: page_tokens is a multiple of KvSpec::reuse_granularity_tokens. One thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <vector>

#include "scheduler/page_pool.h"

namespace plait {

using RowKey = uint64_t;

inline RowKey row_key(int32_t token, int64_t position, int64_t expanded_until) {
  const auto form = position < expanded_until ? uint64_t{0} : static_cast<uint64_t>(expanded_until);
  return form << 32 | static_cast<uint32_t>(token);
}

class RadixCache {
 public:
  class Node;

  // `pool` outlives the cache.
  RadixCache(PagePool& pool, int64_t page_tokens);
  ~RadixCache();
  RadixCache(const RadixCache&) = delete;
  RadixCache& operator=(const RadixCache&) = delete;

  struct Match {
    Node* node = nullptr;        // where the prefix ends; the root if nothing matched
    std::vector<int32_t> pages;  // of the prefix, in order
  };
  // The longest cached prefix of `keys`, in whole pages. It stays valid until the next insert or evict; lock it to keep
  // it.
  Match match(std::span<const RowKey> keys);

  void lock(Node* node);
  void unlock(Node* node);

  // Hands the pages after node `from` over to the tree: `keys` [pages.size() * page_tokens] and `pages` go on where
  // `from` ends. Where the tree has such a page already, the given one is released and replaced in `pages`. Returns the
  // node where they end.
  Node* insert(Node* from, std::span<const RowKey> keys, std::span<int32_t> pages);

  // Releases unlocked pages until `pages` are released or none is left; returns how many.
  int64_t evict(int64_t pages);
  // Evicts what only `node`'s path used (after its last unlock): rows that turned out to be bad.
  void drop(Node* node);
  void clear();  // evicts everything; nothing is locked

  Node* root() { return root_.get(); }
  int64_t cached_pages() const { return cached_pages_; }
  int64_t evictable_pages() const { return evictable_pages_; }

  // Walks the whole tree and asserts that counts, links and locks are what `locked` (one entry for each lock held)
  // says. For tests and idle checks.
  void check_invariants(std::span<Node* const> locked) const;

 private:
  struct Walk;
  Walk descend(Node* from, std::span<const RowKey> keys);
  Node* split(Node* node, size_t pages);
  Node* add_leaf(Node* parent, std::span<const RowKey> keys, std::span<const int32_t> pages);
  void remove_last_pages(Node* leaf, size_t count);
  void touch(Node* node);
  void update_evictable(Node* node);

  using LeafOrder = std::set<std::pair<uint64_t, Node*>>;  // by time of last use
  PagePool& pool_;
  const size_t page_tokens_;
  std::unique_ptr<Node> root_;
  LeafOrder evictable_leaves_;
  int64_t cached_pages_ = 0;
  int64_t evictable_pages_ = 0;
  uint64_t clock_ = 0;
};

}  // namespace plait
