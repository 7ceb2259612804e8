#include "server/load_balance.h"

#include <algorithm>
#include <random>
#include <vector>

#include <gtest/gtest.h>

namespace plait {
namespace {

constexpr LoadBalance kMethods[] = {LoadBalance::kTotalRequests, LoadBalance::kTotalTokens, LoadBalance::kRoundRobin};

ReplicaLoad load(int64_t requests, int64_t tokens, bool ready = true, int64_t room = 10) {
  return {.ready = ready, .requests = requests, .tokens = tokens, .room = room};
}

TEST(LoadBalance, CountsWhatTheMethodSays) {
  const std::vector<ReplicaLoad> loads = {load(4, 900), load(3, 500), load(2, 700)};
  EXPECT_EQ(choose_replica(LoadBalance::kTotalRequests, loads, 0), 2U);
  EXPECT_EQ(choose_replica(LoadBalance::kTotalTokens, loads, 0), 1U);
  for (size_t turn = 0; turn < 3; ++turn) EXPECT_EQ(choose_replica(LoadBalance::kRoundRobin, loads, turn), turn);
}

TEST(LoadBalance, TheFirstOfEqualOnes) {
  const std::vector<ReplicaLoad> loads = {load(2, 9), load(1, 5), load(1, 5)};
  EXPECT_EQ(choose_replica(LoadBalance::kTotalRequests, loads, 2), 1U);
  EXPECT_EQ(choose_replica(LoadBalance::kTotalTokens, loads, 2), 1U);
}

TEST(LoadBalance, TurnsPassOverWhoeverCannot) {
  const std::vector<ReplicaLoad> loads = {load(0, 0), load(0, 0, false), load(0, 0, true, 0), load(0, 0)};
  EXPECT_EQ(choose_replica(LoadBalance::kRoundRobin, loads, 1), 3U);
  EXPECT_EQ(choose_replica(LoadBalance::kRoundRobin, loads, 4), 0U) << "turns go round";
}

TEST(LoadBalance, WaitsForAnEngineOnlyIfNoOtherHasRoom) {
  EXPECT_EQ(choose_replica(LoadBalance::kTotalRequests, std::vector{load(0, 0, false), load(9, 9)}, 0), 1U);
  EXPECT_EQ(choose_replica(LoadBalance::kTotalRequests, std::vector{load(0, 0, false), load(9, 9, true, 0)}, 0), 0U);
  EXPECT_EQ(choose_replica(LoadBalance::kTotalRequests, std::vector{load(3, 0, false), load(2, 9, false)}, 0), 1U);
}

// Against the definition, written in another way: filter, then sort.
TEST(LoadBalance, IsTheBestOfThoseWithRoom) {
  std::mt19937 random(5);
  int cases = 0, none = 0;
  for (; cases < 20'000; ++cases) {
    std::vector<ReplicaLoad> loads(1 + random() % 5);
    for (ReplicaLoad& one : loads)
      one = load(random() % 4, random() % 4, random() % 2 == 0, static_cast<int64_t>(random() % 3) - 1);
    const size_t turn = random() % loads.size();
    const LoadBalance method = kMethods[random() % 3];
    std::vector<size_t> order;  // from `turn` on for round robin
    for (size_t i = 0; i < loads.size(); ++i)
      order.push_back(method == LoadBalance::kRoundRobin ? (turn + i) % loads.size() : i);
    std::erase_if(order, [&](size_t i) { return loads[i].room <= 0; });
    if (std::ranges::any_of(order, [&](size_t i) { return loads[i].ready; }))
      std::erase_if(order, [&](size_t i) { return !loads[i].ready; });
    if (method == LoadBalance::kTotalRequests)
      std::ranges::stable_sort(order, {}, [&](size_t i) { return loads[i].requests; });
    if (method == LoadBalance::kTotalTokens)
      std::ranges::stable_sort(order, {}, [&](size_t i) { return loads[i].tokens; });
    const auto chosen = choose_replica(method, loads, turn);
    ASSERT_EQ(chosen, order.empty() ? std::nullopt : std::optional(order.front()));
    none += !chosen;
  }
  std::printf("%d choices, %d of them without room\n", cases, none);
}

}  // namespace
}  // namespace plait
