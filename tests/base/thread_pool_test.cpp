#include "base/thread_pool.h"

#include <atomic>
#include <chrono>
#include <ctime>
#include <numeric>
#include <set>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace plait {
namespace {

TEST(ThreadPool, EveryIndexIsVisitedOnce) {
  int loops = 0;
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (const int64_t count : {0, 1, 2, 7, 64, 1000}) {
      for (const int64_t grain : {-1, 0, 1, 3, 64, 1000, 5000}) {
        std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
        pool.parallel_for(count, grain, [&](int64_t begin, int64_t end, int member) {
          EXPECT_LT(begin, end);
          EXPECT_LE(end - begin, std::max<int64_t>(grain, 1));
          EXPECT_GE(member, 0);
          EXPECT_LT(member, threads);
          for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
        });
        for (const auto& visit : visits) ASSERT_EQ(visit, 1);
        ++loops;
      }
    }
  }
  fmt::print("{} loops tried\n", loops);
}

TEST(ThreadPool, NegativeCountsAreEmpty) {
  ThreadPool pool(2);
  pool.parallel_for(-5, 1, [](int64_t, int64_t, int) { FAIL(); });
}

// Results written by members are seen by the owner, loop after loop; also what the owner wrote by the members.
TEST(ThreadPool, LoopsFollowEachOtherWithoutRaces) {
  ThreadPool pool(4);
  std::vector<int64_t> values(256, 0);
  constexpr int kLoops = 2000;
  for (int loop = 0; loop < kLoops; ++loop) {
    pool.parallel_for(static_cast<int64_t>(values.size()), 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) values[static_cast<size_t>(i)] += loop;
    });
    values[static_cast<size_t>(loop) % values.size()] += 1;
  }
  const int64_t each = int64_t{kLoops} * (kLoops - 1) / 2;
  EXPECT_EQ(std::accumulate(values.begin(), values.end(), int64_t{0}), each * 256 + kLoops);
}

TEST(ThreadPool, MembersAreDistinctThreads) {
  ThreadPool pool(3);
  std::atomic<int> arrived = 0;
  std::array<std::thread::id, 3> ids;
  // No chunk ends before all members have one.
  pool.parallel_for(3, 1, [&](int64_t, int64_t, int member) {
    ids[static_cast<size_t>(member)] = std::this_thread::get_id();
    ++arrived;
    while (arrived < 3) std::this_thread::yield();
  });
  EXPECT_EQ(std::set<std::thread::id>(ids.begin(), ids.end()).size(), 3U);
  EXPECT_EQ(ids[0], std::this_thread::get_id()) << "the owner is member 0";
}

double process_cpu_seconds() {
  timespec time = {};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

TEST(ThreadPool, AnIdlePoolUsesNoProcessor) {
  ThreadPool pool(4);
  std::atomic<int> visits = 0;
  pool.parallel_for(4, 1, [&](int64_t, int64_t, int) { ++visits; });
  std::this_thread::sleep_for(std::chrono::milliseconds(100));  // helpers park
  const double before = process_cpu_seconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_LT(process_cpu_seconds() - before, 0.05);
  pool.parallel_for(4, 1, [&](int64_t, int64_t, int) { ++visits; });  // and wake up again
  EXPECT_EQ(visits, 8);
}

TEST(ThreadPool, ComesAndGoesWithoutWork) {
  for (int i = 0; i < 50; ++i) ThreadPool pool(3);
}

TEST(ThreadPool, AtLeastOneCoreIsUsable) {
  EXPECT_GE(usable_cores(), 1);
  EXPECT_EQ(ThreadPool(0).size(), usable_cores());
}

}  // namespace
}  // namespace plait
