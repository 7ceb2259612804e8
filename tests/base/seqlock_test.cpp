#include "base/seqlock.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/support/effort.h"

namespace plait {
namespace {

// Larger than any register, and not a whole number of words.
struct Record {
  std::array<uint32_t, 33> all_alike{};
};

TEST(Seqlock, HoldsTheDefaultBeforeTheFirstWrite) {
  struct Step {
    int64_t number = -1;
  };
  EXPECT_EQ(Seqlock<Step>().load().number, -1);
}

TEST(Seqlock, ReadersNeverSeeHalfAWrite) {
  Seqlock<Record> shared;
  std::atomic<bool> over{false};
  std::atomic<int64_t> copies{0}, different{0};
  std::vector<std::thread> readers;
  for (int i = 0; i < 2; ++i)
    readers.emplace_back([&] {
      uint32_t last = 0;
      while (!over.load()) {
        const Record record = shared.load();
        for (const uint32_t value : record.all_alike) ASSERT_EQ(value, record.all_alike[0]);
        ASSERT_GE(record.all_alike[0], last) << "an older value after a newer one";
        different += record.all_alike[0] != last;
        ++copies;
        last = record.all_alike[0];
      }
    });
  uint32_t written = 0;
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (different.load() < repetitions(2000) && std::chrono::steady_clock::now() < until) {
    Record record;
    record.all_alike.fill(++written);
    shared.store(record);
  }
  over.store(true);
  for (auto& reader : readers) reader.join();
  fmt::print("{} writes of 132 bytes, {} copies by two threads, {} of them new: none torn\n", written, copies.load(),
             different.load());
  EXPECT_GE(different.load(), repetitions(2000));
  EXPECT_EQ(shared.load().all_alike[32], written);
}

}  // namespace
}  // namespace plait
