// A small value that one thread at a time writes and any thread copies, without a lock.
//
// Writing costs a few stores and never waits; a copy that meets a write is taken again. Before the first one it is T{}.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>
#include <type_traits>

namespace plait {

template <typename T>
class Seqlock {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Seqlock() { store(T{}); }

  void store(const T& value) {
    const uint64_t version = version_.load(std::memory_order_relaxed);
    version_.store(version + 1, std::memory_order_relaxed);
    // Whoever reads one of these words sees the odd version, too: releases instead of a fence, which the thread
    // sanitizer does not follow.
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    for (size_t i = 0; i < words_.size(); ++i) {
      uint64_t word = 0;
      std::memcpy(&word, bytes + i * sizeof word, std::min(sizeof word, sizeof value - i * sizeof word));
      words_[i].store(word, std::memory_order_release);
    }
    version_.store(version + 2, std::memory_order_release);
  }

  T load() const {
    while (true) {
      const uint64_t version = version_.load(std::memory_order_acquire);
      Words words;
      for (size_t i = 0; i < words.size(); ++i) words[i] = words_[i].load(std::memory_order_acquire);
      if (version % 2 == 0 && version_.load(std::memory_order_relaxed) == version) {
        T value;
        std::memcpy(static_cast<void*>(&value), words.data(), sizeof value);
        return value;
      }
      std::this_thread::yield();
    }
  }

 private:
  using Words = std::array<uint64_t, (sizeof(T) + sizeof(uint64_t) - 1) / sizeof(uint64_t)>;
  std::atomic<uint64_t> version_{0};  // odd while the words are being written
  std::array<std::atomic<uint64_t>, std::tuple_size_v<Words>> words_{};
};

}  // namespace plait
