#include "scheduler/radix_cache.h"

#include <random>

#include <gtest/gtest.h>

namespace plait {
namespace {

// The cache as plain pages: each is known by the whole prefix that it ends.
class PlainCache {
 public:
  using Prefix = std::vector<RowKey>;
  struct Page {
    int32_t page = 0;
    uint64_t last_use = 0;
    int locks = 0;
  };

  explicit PlainCache(size_t page_tokens) : page_tokens_(page_tokens) {}

  Prefix prefix(std::span<const RowKey> keys, size_t pages) const {
    return {keys.begin(), keys.begin() + static_cast<ptrdiff_t>(pages * page_tokens_)};
  }
  std::vector<int32_t> match(std::span<const RowKey> keys) const {
    std::vector<int32_t> pages;
    for (size_t n = 1; n * page_tokens_ <= keys.size(); ++n) {
      const auto found = pages_.find(prefix(keys, n));
      if (found == pages_.end()) break;
      pages.push_back(found->second.page);
    }
    return pages;
  }
  void touch(std::span<const RowKey> keys, size_t pages) {
    ++clock_;
    for (size_t n = 1; n <= pages; ++n) pages_.at(prefix(keys, n)).last_use = clock_;
  }
  void lock(std::span<const RowKey> keys, size_t pages, int change) {
    for (size_t n = 1; n <= pages; ++n) pages_.at(prefix(keys, n)).locks += change;
  }
  void add(std::span<const RowKey> keys, size_t pages, int32_t page) { pages_[prefix(keys, pages)].page = page; }
  // The page that goes first, if any may.
  bool evict_one() {
    auto victim = pages_.end();
    for (auto page = pages_.begin(); page != pages_.end(); ++page) {
      // In the order of prefixes the pages below this one follow it at once.
      const auto next = std::next(page);
      const bool leaf = next == pages_.end() || next->first.size() <= page->first.size() ||
                        !std::equal(page->first.begin(), page->first.end(), next->first.begin());
      if (leaf && page->second.locks == 0 &&
          (victim == pages_.end() || page->second.last_use < victim->second.last_use))
        victim = page;
    }
    if (victim == pages_.end()) return false;
    pages_.erase(victim);
    return true;
  }
  int64_t cached() const { return static_cast<int64_t>(pages_.size()); }
  int64_t evictable() const {
    return std::count_if(pages_.begin(), pages_.end(), [](auto& page) { return page.second.locks == 0; });
  }

 private:
  const size_t page_tokens_;
  std::map<Prefix, Page> pages_;
  uint64_t clock_ = 0;
};

struct Holder {
  std::vector<RowKey> keys;
  std::vector<int32_t> pages;
  RadixCache::Node* node = nullptr;
};

// Keys of few letters, so that prefixes are shared and branch everywhere.
std::vector<RowKey> random_keys(std::mt19937_64& random, size_t page_tokens) {
  std::vector<RowKey> keys(random() % (8 * page_tokens) + 1);
  for (RowKey& key : keys) key = random() % 10 == 0 ? 1 : 0;
  return keys;
}

TEST(RadixCache, AgreesWithPlainPages) {
  int64_t operations = 0, hits = 0, evictions = 0;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    std::mt19937_64 random(seed);
    const size_t page_tokens = 1 + random() % 4;
    PagePool pool(40);
    RadixCache cache(pool, static_cast<int64_t>(page_tokens));
    PlainCache plain(page_tokens);
    std::vector<Holder> holders;
    for (int step = 0; step < 300; ++step, ++operations) {
      const uint64_t kind = random() % 10;
      if (kind < 5) {  // a request comes: match, lock, compute the rest, hand it over
        Holder holder{random_keys(random, page_tokens), {}, nullptr};
        const auto match = cache.match(holder.keys);
        ASSERT_EQ(match.pages, plain.match(holder.keys));
        const size_t matched = match.pages.size();
        plain.touch(holder.keys, matched);
        hits += static_cast<int64_t>(matched);
        const size_t missing = holder.keys.size() / page_tokens - matched;
        cache.lock(match.node);
        plain.lock(holder.keys, matched, 1);
        if (static_cast<int64_t>(missing) > pool.free() + cache.evictable_pages()) {
          cache.unlock(match.node);
          plain.lock(holder.keys, matched, -1);
          plain.touch(holder.keys, matched);
          continue;
        }
        for (int64_t lack = static_cast<int64_t>(missing) - pool.free(); lack > 0; --lack, ++evictions) {
          ASSERT_EQ(cache.evict(1), 1);
          ASSERT_TRUE(plain.evict_one());
        }
        holder.pages = match.pages;
        pool.allocate(static_cast<int64_t>(missing), holder.pages);
        // Sometimes another request with the same prefix is faster.
        if (random() % 3 == 0 && missing > 0 && pool.free() >= static_cast<int64_t>(missing)) {
          std::vector<int32_t> faster;
          pool.allocate(static_cast<int64_t>(missing), faster);
          cache.insert(match.node, std::span(holder.keys).subspan(matched * page_tokens, missing * page_tokens),
                       faster);
          for (size_t i = 0; i < missing; ++i) plain.add(holder.keys, matched + i + 1, faster[i]);
          plain.touch(holder.keys, matched + missing);
        }
        holder.node =
            cache.insert(match.node, std::span(holder.keys).subspan(matched * page_tokens, missing * page_tokens),
                         std::span(holder.pages).subspan(matched));
        for (size_t i = matched; i < matched + missing; ++i)
          if (plain.match(holder.keys).size() <= i) plain.add(holder.keys, i + 1, holder.pages[i]);
        ASSERT_EQ(plain.match(holder.keys), holder.pages) << "pages that were there already replace the given ones";
        plain.touch(holder.keys, matched + missing);
        cache.lock(holder.node);
        cache.unlock(match.node);
        plain.lock(holder.keys, matched, -1);
        plain.lock(holder.keys, matched + missing, 1);
        plain.touch(holder.keys, matched);
        holders.push_back(std::move(holder));
      } else if (kind < 9 && !holders.empty()) {
        const size_t which = random() % holders.size();
        cache.unlock(holders[which].node);
        plain.lock(holders[which].keys, holders[which].pages.size(), -1);
        plain.touch(holders[which].keys, holders[which].pages.size());
        holders.erase(holders.begin() + static_cast<ptrdiff_t>(which));
      } else {
        const auto wanted = static_cast<int64_t>(random() % 4);
        int64_t expected = 0;
        while (expected < wanted && plain.evict_one()) ++expected;
        ASSERT_EQ(cache.evict(wanted), expected);
        evictions += expected;
      }
      std::vector<RadixCache::Node*> locked;
      for (const Holder& holder : holders) locked.push_back(holder.node);
      cache.check_invariants(locked);
      ASSERT_EQ(cache.cached_pages(), plain.cached());
      ASSERT_EQ(cache.evictable_pages(), plain.evictable());
      ASSERT_EQ(pool.free() + cache.cached_pages(), pool.total());
    }
    for (const Holder& holder : holders) cache.unlock(holder.node);
    cache.clear();
    ASSERT_EQ(pool.free(), pool.total());
  }
  std::printf("%ld operations, %ld pages hit, %ld evicted\n", operations, hits, evictions);
  EXPECT_GT(hits, 1000);
  EXPECT_GT(evictions, 1000);
}

class RadixCacheByHand : public testing::Test {
 protected:
  // Caches `tokens` (whole pages) as a prompt and leaves it unlocked.
  void cache_prompt(const std::vector<int32_t>& tokens) {
    const auto keys = keys_of(tokens, static_cast<int64_t>(tokens.size()));
    std::vector<int32_t> pages;
    pool_.allocate(static_cast<int64_t>(tokens.size() / 2), pages);
    cache_.insert(cache_.root(), keys, pages);
  }
  static std::vector<RowKey> keys_of(const std::vector<int32_t>& tokens, int64_t prompt) {
    std::vector<RowKey> keys;
    for (size_t i = 0; i < tokens.size(); ++i) keys.push_back(row_key(tokens[i], static_cast<int64_t>(i), prompt));
    return keys;
  }
  size_t matched(const std::vector<int32_t>& tokens, int64_t prompt) {
    return cache_.match(keys_of(tokens, prompt)).pages.size();
  }

  PagePool pool_{10};
  RadixCache cache_{pool_, 2};
};

TEST_F(RadixCacheByHand, MatchesWholePagesOnly) {
  cache_prompt({1, 2, 3, 4, 5, 6});
  EXPECT_EQ(matched({1, 2, 3, 4, 5, 6, 7}, 7), 3U);
  EXPECT_EQ(matched({1, 2, 3, 4, 5, 9}, 6), 2U);
  EXPECT_EQ(matched({1, 2, 3}, 3), 1U);
  EXPECT_EQ(matched({1}, 1), 0U);
  EXPECT_EQ(matched({2, 1}, 2), 0U);
}

TEST_F(RadixCacheByHand, GeneratedRowsAreFoundOnlyByTheSamePromptGoingOn) {
  const std::vector<int32_t> tokens = {1, 2, 3, 4, 5, 6};
  std::vector<int32_t> pages;
  pool_.allocate(3, pages);
  cache_.insert(cache_.root(), keys_of(tokens, 3), pages);  // token 4 on was generated
  EXPECT_EQ(matched(tokens, 3), 3U);
  EXPECT_EQ(matched(tokens, 6), 1U) << "as a prompt, its rows have other bits";
  EXPECT_EQ(matched(tokens, 2), 1U);
}

TEST_F(RadixCacheByHand, DropTakesWhatOnlyThePathUsed) {
  cache_prompt({1, 2, 3, 4, 5, 6});
  cache_prompt({1, 2, 7, 8});
  EXPECT_EQ(cache_.cached_pages(), 4);
  cache_.drop(cache_.match(keys_of({1, 2, 3, 4, 5, 6}, 6)).node);
  EXPECT_EQ(matched({1, 2, 3, 4, 5, 6}, 6), 1U);
  EXPECT_EQ(matched({1, 2, 7, 8}, 4), 2U);
  cache_.check_invariants({});
}

TEST_F(RadixCacheByHand, DeepPathsNeedNoStack) {
  PagePool pool(200'000);
  RadixCache cache(pool, 1);
  RadixCache::Node* end = cache.root();
  for (RowKey key = 0; key < 200'000; ++key) {
    std::vector<int32_t> page;
    pool.allocate(1, page);
    end = cache.insert(end, {&key, 1}, page);
  }
  EXPECT_EQ(cache.cached_pages(), 200'000);
  EXPECT_EQ(cache.evictable_pages(), 200'000);
}

}  // namespace
}  // namespace plait
