#include "scheduler/radix_cache.h"

#include "base/assert.h"

namespace plait {
namespace {

// Keys of one page, compared with spans so that a lookup copies nothing.
struct PageKeyLess {
  using is_transparent = void;
  bool operator()(std::span<const RowKey> a, std::span<const RowKey> b) const {
    return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
  }
};

}  // namespace

class RadixCache::Node {
 public:
  Node* parent = nullptr;
  std::vector<RowKey> keys;    // [pages.size() * page_tokens], empty at the root
  std::vector<int32_t> pages;  // owned
  std::map<std::vector<RowKey>, std::unique_ptr<Node>, PageKeyLess> children;  // by the keys of their first page
  int64_t locks = 0;      // of requests whose prefix ends here or below
  uint64_t last_use = 0;  // of the cache's clock
  bool listed = false;    // in evictable_leaves_
};

struct RadixCache::Walk {
  Node* node = nullptr;  // the last one entered
  size_t in_node = 0;    // matched pages of it; fewer than all only where the walk ended inside
  size_t matched = 0;    // pages, in all
};

RadixCache::RadixCache(PagePool& pool, int64_t page_tokens)
    : pool_(pool), page_tokens_(static_cast<size_t>(page_tokens)), root_(std::make_unique<Node>()) {
  root_->locks = 1;  // never evicted
}

// Not by recursion: a prompt that was cached in small chunks is a path as deep as it has chunks.
RadixCache::~RadixCache() {
  std::vector<std::unique_ptr<Node>> pending;
  pending.push_back(std::move(root_));
  while (!pending.empty()) {
    const std::unique_ptr<Node> node = std::move(pending.back());
    pending.pop_back();
    for (auto& child : node->children) pending.push_back(std::move(child.second));
  }
}

RadixCache::Walk RadixCache::descend(Node* from, std::span<const RowKey> keys) {
  const size_t wanted = keys.size() / page_tokens_;
  Walk walk{from, from->pages.size(), 0};
  while (walk.matched < wanted) {
    const auto child = walk.node->children.find(keys.subspan(walk.matched * page_tokens_, page_tokens_));
    if (child == walk.node->children.end()) break;
    walk.node = child->second.get();
    const size_t comparable = std::min(walk.node->pages.size(), wanted - walk.matched);
    for (walk.in_node = 1; walk.in_node < comparable; ++walk.in_node) {
      const auto own = walk.node->keys.begin() + static_cast<ptrdiff_t>(walk.in_node * page_tokens_);
      const auto other = keys.begin() + static_cast<ptrdiff_t>((walk.matched + walk.in_node) * page_tokens_);
      if (!std::equal(own, own + static_cast<ptrdiff_t>(page_tokens_), other)) break;
    }
    walk.matched += walk.in_node;
    if (walk.in_node < walk.node->pages.size()) break;
  }
  return walk;
}

RadixCache::Match RadixCache::match(std::span<const RowKey> keys) {
  const Walk walk = descend(root_.get(), keys);
  Match match{walk.in_node < walk.node->pages.size() ? split(walk.node, walk.in_node) : walk.node, {}};
  touch(match.node);
  match.pages.resize(walk.matched);
  size_t end = walk.matched;
  for (const Node* node = match.node; node != root_.get(); node = node->parent) {
    end -= node->pages.size();
    std::copy(node->pages.begin(), node->pages.end(), match.pages.begin() + static_cast<ptrdiff_t>(end));
  }
  return match;
}

// Puts the first `pages` pages of `node` into a new node above it and returns that. `node` itself keeps its end, so
// those who hold it notice nothing.
RadixCache::Node* RadixCache::split(Node* node, size_t pages) {
  const auto key_border = node->keys.begin() + static_cast<ptrdiff_t>(pages * page_tokens_);
  const auto page_border = node->pages.begin() + static_cast<ptrdiff_t>(pages);
  auto slot = node->parent->children.find(std::span<const RowKey>(node->keys).first(page_tokens_));
  std::unique_ptr<Node> lower = std::move(slot->second);

  auto upper = std::make_unique<Node>();
  upper->parent = node->parent;
  upper->keys.assign(node->keys.begin(), key_border);
  upper->pages.assign(node->pages.begin(), page_border);
  upper->locks = node->locks;
  upper->last_use = node->last_use;
  node->keys.erase(node->keys.begin(), key_border);
  node->pages.erase(node->pages.begin(), page_border);
  node->parent = upper.get();
  std::vector<RowKey> first_page(node->keys.begin(), node->keys.begin() + static_cast<ptrdiff_t>(page_tokens_));
  upper->children.emplace(std::move(first_page), std::move(lower));
  slot->second = std::move(upper);
  return slot->second.get();
}

RadixCache::Node* RadixCache::add_leaf(Node* parent, std::span<const RowKey> keys, std::span<const int32_t> pages) {
  auto leaf = std::make_unique<Node>();
  Node* const added = leaf.get();
  leaf->parent = parent;
  leaf->keys.assign(keys.begin(), keys.end());
  leaf->pages.assign(pages.begin(), pages.end());
  parent->children.emplace(std::vector<RowKey>(keys.begin(), keys.begin() + static_cast<ptrdiff_t>(page_tokens_)),
                           std::move(leaf));
  cached_pages_ += static_cast<int64_t>(pages.size());
  evictable_pages_ += static_cast<int64_t>(pages.size());
  added->last_use = clock_;
  update_evictable(added);
  update_evictable(parent);
  return added;
}

RadixCache::Node* RadixCache::insert(Node* from, std::span<const RowKey> keys, std::span<int32_t> pages) {
  PLAIT_ASSERT(keys.size() == pages.size() * page_tokens_, "pages and their keys differ in number");
  const Walk walk = descend(from, keys);
  Node* node = walk.in_node < walk.node->pages.size() ? split(walk.node, walk.in_node) : walk.node;

  size_t end = walk.matched;
  for (const Node* known = node; known != from; known = known->parent) {
    end -= known->pages.size();
    for (size_t i = 0; i < known->pages.size(); ++i) {
      int32_t& page = pages[end + i];
      if (page == known->pages[i]) continue;
      pool_.release({&page, 1});
      page = known->pages[i];
    }
  }
  if (walk.matched < pages.size())
    node = add_leaf(node, keys.subspan(walk.matched * page_tokens_), pages.subspan(walk.matched));
  touch(node);
  return node;
}

void RadixCache::lock(Node* node) {
  for (; node != root_.get(); node = node->parent) {
    if (node->locks++ > 0) continue;
    evictable_pages_ -= static_cast<int64_t>(node->pages.size());
    update_evictable(node);
  }
}

void RadixCache::unlock(Node* node) {
  touch(node);
  for (; node != root_.get(); node = node->parent) {
    PLAIT_ASSERT(node->locks > 0, "a cached prefix was unlocked more often than locked");
    if (--node->locks > 0) continue;
    evictable_pages_ += static_cast<int64_t>(node->pages.size());
    update_evictable(node);
  }
}

// Lists or unlists `node` according to whether it is an unlocked leaf.
void RadixCache::update_evictable(Node* node) {
  const bool should = node->locks == 0 && node->children.empty();
  if (should == node->listed) return;
  if (should)
    evictable_leaves_.insert({node->last_use, node});
  else
    evictable_leaves_.erase({node->last_use, node});
  node->listed = should;
}

// Using a node uses the path to it; a parent gets its children's times when they go, which is when they begin to
// matter.
void RadixCache::touch(Node* node) {
  ++clock_;
  if (node == root_.get()) return;
  if (node->listed) evictable_leaves_.erase({node->last_use, node});
  node->last_use = clock_;
  if (node->listed) evictable_leaves_.insert({node->last_use, node});
}

// Of an unlocked leaf; the node goes when it is empty.
void RadixCache::remove_last_pages(Node* leaf, size_t count) {
  PLAIT_ASSERT(leaf->locks == 0 && leaf->children.empty() && count <= leaf->pages.size(), "not an evictable leaf");
  pool_.release(std::span<const int32_t>(leaf->pages).last(count));
  cached_pages_ -= static_cast<int64_t>(count);
  evictable_pages_ -= static_cast<int64_t>(count);
  if (count < leaf->pages.size()) {
    leaf->pages.resize(leaf->pages.size() - count);
    leaf->keys.resize(leaf->pages.size() * page_tokens_);
    return;
  }
  evictable_leaves_.erase({leaf->last_use, leaf});
  Node* const parent = leaf->parent;
  parent->last_use = std::max(parent->last_use, leaf->last_use);
  parent->children.erase(parent->children.find(std::span<const RowKey>(leaf->keys).first(page_tokens_)));
  update_evictable(parent);
}

int64_t RadixCache::evict(int64_t pages) {
  int64_t released = 0;
  while (released < pages && !evictable_leaves_.empty()) {
    Node* const leaf = evictable_leaves_.begin()->second;
    const auto count = std::min<int64_t>(static_cast<int64_t>(leaf->pages.size()), pages - released);
    remove_last_pages(leaf, static_cast<size_t>(count));
    released += count;
  }
  return released;
}

void RadixCache::drop(Node* node) {
  while (node->locks == 0 && node->children.empty()) {
    Node* const parent = node->parent;
    remove_last_pages(node, node->pages.size());
    node = parent;
  }
}

void RadixCache::clear() {
  evict(cached_pages_);
  PLAIT_ASSERT(cached_pages_ == 0, "the prefix cache was cleared while a request held a part of it");
}

void RadixCache::check_invariants(std::span<Node* const> locked) const {
  std::unordered_map<const Node*, int64_t> locks;
  for (const Node* holder : locked)
    for (const Node* node = holder; node != root_.get(); node = node->parent) ++locks[node];

  int64_t cached = 0, evictable = 0;
  size_t leaves = 0;
  std::vector<const Node*> pending = {root_.get()};
  while (!pending.empty()) {
    const Node* const node = pending.back();
    pending.pop_back();
    for (const auto& [first_page, child] : node->children) {
      PLAIT_ASSERT(child->parent == node, "radix cache: wrong parent");
      PLAIT_ASSERT(!child->pages.empty() && child->keys.size() == child->pages.size() * page_tokens_,
                   "radix cache: keys and pages differ in number");
      PLAIT_ASSERT(std::equal(first_page.begin(), first_page.end(), child->keys.begin()),
                   "radix cache: a child under a foreign key");
      pending.push_back(child.get());
    }
    if (node == root_.get()) continue;
    PLAIT_ASSERT(node->locks == locks[node], "radix cache: wrong number of locks");
    PLAIT_ASSERT(node->listed == (node->locks == 0 && node->children.empty()), "radix cache: wrong list of leaves");
    PLAIT_ASSERT(evictable_leaves_.contains({node->last_use, const_cast<Node*>(node)}) == node->listed,
                 "radix cache: a leaf under a wrong time");
    leaves += node->listed ? 1 : 0;
    cached += static_cast<int64_t>(node->pages.size());
    evictable += node->locks == 0 ? static_cast<int64_t>(node->pages.size()) : 0;
  }
  PLAIT_ASSERT(leaves == evictable_leaves_.size(), "radix cache: leaves that are gone are still listed");
  PLAIT_ASSERT(cached == cached_pages_ && evictable == evictable_pages_, "radix cache: wrong number of pages");
}

}  // namespace plait
