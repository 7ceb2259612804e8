// Sharing out work: every kernel once, equal on every host, and close to the best that there is.
#include "jit/build_shares.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/jit/compilers.h"
#include "tests/support/effort.h"

namespace plait::jit {
namespace {

using ::testing::ElementsAre;

const CompilerIdentity kCompiler{"fake", "1.0"};

std::vector<BuildItem> items_of(std::span<const double> seconds, int builders, std::mt19937& random) {
  std::vector<BuildItem> items;
  for (size_t i = 0; i < seconds.size(); ++i) {
    BuildItem& item = items.emplace_back();
    item.key = sha256(fmt::format("{}", i));
    item.seconds = seconds[i];
    for (int builder = 0; builder < builders; ++builder)
      if (random() % 2) item.users.push_back(builder);
    if (item.users.empty()) item.users.push_back(static_cast<int>(random() % static_cast<unsigned>(builders)));
  }
  return items;
}

// How long a host takes for its share, its cores taking one kernel after the other.
double seconds_of(std::span<const BuildItem> items, const std::vector<size_t>& share, int cores) {
  if (share.empty()) return 0;
  std::vector<double> busy(static_cast<size_t>(std::max(cores, 1)), 0);
  for (const size_t item : share) *std::ranges::min_element(busy) += items[item].seconds;
  return std::ranges::max(busy);
}

double makespan(std::span<const BuildItem> items, std::span<const Builder> builders) {
  const auto shares = share_builds(items, builders);
  double longest = 0;
  for (size_t i = 0; i < builders.size(); ++i)
    longest = std::max(longest, seconds_of(items, shares[i], builders[i].cores));
  return longest;
}

// By trying everything.
double best_makespan(std::span<const double> seconds, int cores) {
  std::vector<double> busy(static_cast<size_t>(cores), 0);
  double best = std::accumulate(seconds.begin(), seconds.end(), 0.0);
  const std::function<void(size_t)> place = [&](size_t i) {
    if (std::ranges::max(busy) >= best) return;
    if (i == seconds.size()) {
      best = std::ranges::max(busy);
      return;
    }
    for (double& core : busy) {
      core += seconds[i];
      place(i + 1);
      core -= seconds[i];
    }
  };
  place(0);
  return best;
}

struct Drawn {
  std::vector<double> seconds;
  std::vector<Builder> builders;
  std::vector<BuildItem> items;
  int cores = 0;
};

Drawn draw(std::mt19937& random, int most_items, int most_builders, int most_cores) {
  const auto up_to = [&](int most) { return 1 + static_cast<int>(random() % static_cast<unsigned>(most)); };
  Drawn drawn;
  drawn.builders.resize(static_cast<size_t>(up_to(most_builders)));
  for (Builder& builder : drawn.builders) drawn.cores += builder.cores = up_to(most_cores);
  drawn.seconds.resize(static_cast<size_t>(up_to(most_items)));
  const bool equal = random() % 4 == 0;
  for (double& seconds : drawn.seconds) seconds = equal ? 1 : static_cast<double>(up_to(64)) / 16;
  drawn.items = items_of(drawn.seconds, static_cast<int>(drawn.builders.size()), random);
  return drawn;
}

TEST(BuildShares, AtMostFourThirdsOfTheBest) {
  std::mt19937 random(7);
  const int64_t cases = repetitions(2000);
  double worst = 0;
  for (int64_t i = 0; i < cases; ++i) {
    const Drawn drawn = draw(random, 9, 2, 2);
    const double ratio = makespan(drawn.items, drawn.builders) / best_makespan(drawn.seconds, drawn.cores);
    worst = std::max(worst, ratio);
    ASSERT_LE(ratio, 4.0 / 3 - 1.0 / (3 * drawn.cores) + 1e-9) << "case " << i;
  }
  std::printf("%lld cases against the best that there is: at most %.3f times as long\n", static_cast<long long>(cases),
              worst);
}

TEST(BuildShares, EachKernelOnceAndNoCoreIdleWhileWorkWaits) {
  std::mt19937 random(8);
  const int64_t cases = repetitions(2000);
  double worst = 0;
  for (int64_t i = 0; i < cases; ++i) {
    const Drawn drawn = draw(random, 300, 16, 64);
    const auto shares = share_builds(drawn.items, drawn.builders);
    std::vector<int> built(drawn.items.size(), 0);
    for (const auto& share : shares) {
      for (const size_t item : share) ++built[item];
      EXPECT_TRUE(std::ranges::is_sorted(
          share, [&](size_t a, size_t b) { return drawn.items[a].seconds > drawn.items[b].seconds; }));
    }
    ASSERT_TRUE(std::ranges::all_of(built, [](int count) { return count == 1; })) << "case " << i;
    // Graham's bound for any list: nobody was idle before the last one began.
    const double work = std::accumulate(drawn.seconds.begin(), drawn.seconds.end(), 0.0) / drawn.cores;
    const double longest = std::ranges::max(drawn.seconds);
    const double bound = std::max(work, longest);
    const double span = makespan(drawn.items, drawn.builders);
    worst = std::max(worst, span / bound);
    ASSERT_LE(span, work + longest * (1 - 1.0 / drawn.cores) + 1e-9) << "case " << i;
  }
  std::printf("%lld cases of up to 300 kernels on 16 hosts: at most %.3f times the lower bound\n",
              static_cast<long long>(cases), worst);
}

TEST(BuildShares, DoNotDependOnTheOrderOfTheManifests) {
  std::mt19937 random(9);
  const int64_t cases = repetitions(200);
  for (int64_t i = 0; i < cases; ++i) {
    std::vector<std::vector<KernelManifest>> of_builders(4);
    for (auto& ranks : of_builders) {
      ranks.resize(1 + random() % 3);
      for (KernelManifest& rank : ranks)
        for (int kernel = 0; kernel < 12; ++kernel) {
          const auto number = static_cast<int>(random() % 30);
          rank.kernels.push_back({numbered_source(number), (number % 7) / 3.0, {}});
        }
    }
    const auto items = builds_of(of_builders, kCompiler);
    auto shuffled = of_builders;
    for (auto& ranks : shuffled) {
      for (KernelManifest& rank : ranks) std::ranges::shuffle(rank.kernels, random);
      std::ranges::shuffle(ranks, random);
    }
    const auto same_items = builds_of(shuffled, kCompiler);
    ASSERT_EQ(items.size(), same_items.size());
    for (size_t item = 0; item < items.size(); ++item) {
      EXPECT_EQ(items[item].key, same_items[item].key);
      EXPECT_EQ(items[item].users, same_items[item].users);
    }
    const std::vector<Builder> builders{{2}, {0}, {8}, {1}};
    const auto shares = share_builds(items, builders);
    ASSERT_EQ(shares, share_builds(same_items, builders)) << "case " << i;
    EXPECT_TRUE(shares[1].empty()) << "a host without cores builds nothing";
  }
  std::printf("%lld sets of manifests in another order\n", static_cast<long long>(cases));
}

TEST(BuildShares, KernelsOfEqualCostStayWhereTheyAreNeeded) {
  std::vector<std::vector<KernelManifest>> of_builders(3);
  for (int builder = 0; builder < 3; ++builder) {
    KernelManifest manifest;
    for (int i = 0; i < 2; ++i) manifest.kernels.push_back({numbered_source(10 * builder + i), 1.0, {}});
    of_builders[static_cast<size_t>(builder)].push_back(manifest);
  }
  const auto items = builds_of(of_builders, kCompiler);
  const std::vector<Builder> builders{{2}, {2}, {2}};
  const auto shares = share_builds(items, builders);
  for (int builder = 0; builder < 3; ++builder)
    for (const size_t item : shares[static_cast<size_t>(builder)]) EXPECT_THAT(items[item].users, ElementsAre(builder));
}

}  // namespace
}  // namespace plait::jit
