// The ids of short words that were encoded lately. Bounded: a new word replaces the one in its place.
// One thread at a time.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace plait {

class WordCache {
 public:
  struct Entry {  // one cache line
    static constexpr size_t kMaxBytes = 34, kMaxIds = 7;

    bool holds(std::string_view word) const {
      return bytes == word.size() && std::memcmp(text, word.data(), word.size()) == 0;
    }
    // Nothing happens if there are too many ids.
    void keep(std::string_view word, std::span<const int32_t> word_ids) {
      if (word_ids.size() > kMaxIds) return;
      bytes = static_cast<uint8_t>(word.size());
      count = static_cast<uint8_t>(word_ids.size());
      std::memcpy(text, word.data(), word.size());
      std::copy(word_ids.begin(), word_ids.end(), ids);
    }

    int32_t ids[kMaxIds];
    uint8_t count;
    uint8_t bytes = 0;  // 0: empty
    char text[kMaxBytes];
  };
  static_assert(sizeof(Entry) == 64);

  WordCache() : entries_(kEntries) {}

  // The word's place; null for words too long to keep. `word` is not empty.
  Entry* slot(std::string_view word) {
    if (word.size() > Entry::kMaxBytes) return nullptr;
    return &entries_[hash(word) % kEntries];
  }

 private:
  static constexpr size_t kEntries = 1 << 14;  // 1 MiB

  static uint64_t hash(std::string_view word) {
    uint64_t value = word.size() * 0x9E3779B97F4A7C15u;
    size_t at = 0;
    for (; at + 8 <= word.size(); at += 8) value = mix(value, load(word.data() + at, 8));
    if (at < word.size()) value = mix(value, load(word.data() + at, word.size() - at));
    return value ^ value >> 32;
  }
  static uint64_t load(const char* bytes, size_t count) {
    uint64_t value = 0;
    std::memcpy(&value, bytes, count);
    return value;
  }
  static uint64_t mix(uint64_t value, uint64_t more) {
    value = (value ^ more) * 0xD6E8FEB86659FD93u;
    return value ^ value >> 32;
  }

  std::vector<Entry> entries_;
};

}  // namespace plait
