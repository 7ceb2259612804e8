// Farms of several builders: threads of this process with links in memory, each with a cache of its own. Compilers
// sleep for as long as a kernel costs, so that cores of the machine don't matter.
#include "jit/build_farm.h"

#include <future>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "jit/build_shares.h"
#include "tests/jit/compilers.h"
#include "tests/jit/farm_links.h"
#include "tests/jit/folder.h"
#include "tests/support/effort.h"

namespace plait::jit {
namespace {

using namespace std::chrono_literals;
using ::testing::AllOf;
using ::testing::HasSubstr;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Takes `factor` times what the source says it costs, in milliseconds.
class SleepingCompiler : public Compiler {
 public:
  explicit SleepingCompiler(double factor = 1, std::string version = "1.0")
      : factor_(factor), identity_{"sleeping", std::move(version)} {}

  const CompilerIdentity& identity() const override { return identity_; }
  Result<CompiledKernel> compile(const KernelSource& source) override {
    ++compiles;
    const auto cost = static_cast<double>(source.constants.at("kCost"));
    std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(cost * factor_));
    if (source.text.find("error") != source.text.npos)
      return invalid("kernel '" + source.name + "' does not compile: the log says so");
    CompiledKernel kernel = expected_kernel(source, identity_);
    kernel.cubin.resize(cubin_bytes, '\x5a');
    return kernel;
  }

  std::atomic<int> compiles{0};
  size_t cubin_bytes = 4096;

 private:
  const double factor_;
  const CompilerIdentity identity_;
};

ManifestEntry entry(int number, int64_t cost_ms) {
  ManifestEntry made{numbered_source(number), static_cast<double>(cost_ms) / 1000, {}};
  made.source.constants["kCost"] = cost_ms;
  return made;
}

KernelManifest manifest(int first, std::span<const int64_t> costs_ms) {
  KernelManifest made;
  for (const int64_t cost : costs_ms) made.kernels.push_back(entry(first++, cost));
  return made;
}

using Manifests = std::vector<std::vector<KernelManifest>>;

// One host of a farm.
struct Host {
  Host(MemoryHub* hub, int number, const std::filesystem::path& directory, double factor, int cores)
      : compiler(factor), cache(patient_options(directory)), link(hub ? hub->link(number) : nullptr) {
    options.cores = cores;
    options.progress = [this](const FarmProgress& at) { progress.push_back(at); };
    farm.emplace(cache, compiler, link.get(), options);
  }

  SleepingCompiler compiler;
  KernelCache cache;
  std::unique_ptr<FarmLink> link;
  FarmOptions options;
  std::vector<FarmProgress> progress;
  std::optional<BuildFarm> farm;
  Result<FarmReport> report = FarmReport{};
  double seconds = 0;
};

struct Farm {
  // `directories`: of each host; empty: memory only.
  Farm(std::vector<std::filesystem::path> directories, std::vector<double> factors, int cores)
      : hub(static_cast<int>(directories.size())) {
    for (size_t i = 0; i < directories.size(); ++i)
      hosts.push_back(std::make_unique<Host>(&hub, static_cast<int>(i), directories[i], factors[i], cores));
  }

  // Seconds until the last host was through.
  double build(const Manifests& manifests) {
    const auto begin = Clock::now();
    std::vector<std::thread> threads;
    for (auto& host : hosts)
      threads.emplace_back([&host = *host, &manifests, begin] {
        host.report = host.farm->build(manifests);
        host.seconds = seconds_since(begin);
      });
    for (std::thread& thread : threads) thread.join();
    double last = 0;
    for (const auto& host : hosts) last = std::max(last, host->seconds);
    return last;
  }
  void expect_complete(const Manifests& manifests) {
    for (size_t i = 0; i < hosts.size(); ++i) {
      ASSERT_FALSE(hosts[i]->report.has_error()) << hosts[i]->report.error().message;
      for (const KernelManifest& rank : manifests[i])
        for (const ManifestEntry& kernel : rank.kernels) {
          const auto found = hosts[i]->cache.find(kernel.source, hosts[i]->compiler.identity());
          ASSERT_TRUE(found) << "host " << i << " lacks " << kernel.source.name;
          CompiledKernel expected = expected_kernel(kernel.source, hosts[i]->compiler.identity());
          expected.cubin.resize(found->kernel->cubin.size(), '\x5a');
          EXPECT_EQ(*found->kernel, expected);
        }
    }
  }
  int compiles() const {
    int count = 0;
    for (const auto& host : hosts) count += host->compiler.compiles;
    return count;
  }

  MemoryHub hub;
  std::vector<std::unique_ptr<Host>> hosts;
};

TEST(BuildFarm, OneHostBuildsEachKernelOnceAndSaysHowFarItIs) {
  const Folder folder;
  Host host(nullptr, 0, folder.path(), 1, 4);
  std::vector<int64_t> costs(24, 5);
  // Two ranks that need the same kernels.
  const Manifests manifests{{manifest(0, costs), manifest(0, costs)}};
  const auto report = host.farm->build(manifests);
  ASSERT_FALSE(report.has_error()) << report.error().message;
  EXPECT_EQ(report->kernels, 24u);
  EXPECT_EQ(report->built, 24u);
  EXPECT_EQ(report->helped, 0u);
  EXPECT_EQ(host.compiler.compiles, 24);
  ASSERT_FALSE(host.progress.empty());
  for (size_t i = 1; i < host.progress.size(); ++i) EXPECT_GE(host.progress[i].done, host.progress[i - 1].done);
  EXPECT_EQ(host.progress.back().done, 24u);
  EXPECT_EQ(host.progress.back().total, 24u);
  EXPECT_EQ(host.progress.back().fraction, 1);
  EXPECT_TRUE(std::ranges::any_of(host.progress, [](const FarmProgress& at) { return !at.building.empty(); }));
}

TEST(BuildFarm, NothingToBuildTakesNoTime) {
  Farm farm({{}, {}}, {1, 1}, 2);
  const double seconds = farm.build(Manifests{{{}}, {{}}});
  farm.expect_complete(Manifests{{{}}, {{}}});
  EXPECT_LT(seconds, 0.45) << "somebody waited for others to say hello";
  EXPECT_EQ(farm.compiles(), 0);
}

// Four pipeline stages on four hosts: layers of different kinds, and the last one has a head.
Manifests four_stages() {
  const std::vector<std::vector<int64_t>> costs_ms{
      {400, 300, 200},
      {100, 100, 80, 80, 60, 60, 40, 40},
      {150, 150, 150, 120, 120, 120, 100, 90, 80, 70},
      {250, 220, 180, 40, 40, 30, 30},
  };
  Manifests manifests;
  for (size_t stage = 0; stage < costs_ms.size(); ++stage)
    manifests.push_back({manifest(static_cast<int>(100 * stage), costs_ms[stage])});
  return manifests;
}

double work_of(const Manifests& manifests) {
  double seconds = 0;
  for (const BuildItem& item : builds_of(manifests, {"sleeping", "1.0"})) seconds += item.seconds;
  return seconds;
}

// How fast a farm is can be seen only while nobody else keeps the machine from it, and how often it compiles, too: who
// is slow is helped. So the first of several attempts that is as it should be counts, and the last one if none is.
template <typename Attempt>
void expect_of_some(const Attempt& attempt) {
  for (int left = kSanitized ? 0 : 4; left > 0; --left)
    if (attempt(/*last=*/false)) return;
  attempt(/*last=*/true);
}

TEST(BuildFarm, FourUnequalStagesTakeTheirWorkThroughAllCores) {
  const Manifests manifests = four_stages();
  constexpr int kCores = 2;
  for (const bool shares_files : {true, false})
    expect_of_some([&](bool last) {
      const Folder folder;
      std::vector<std::filesystem::path> directories;
      for (int i = 0; i < 4; ++i)
        directories.push_back(shares_files ? folder.path() : folder.path() / std::to_string(i));
      Farm farm(directories, {1, 1, 1, 1}, kCores);
      const double seconds = farm.build(manifests);
      farm.expect_complete(manifests);
      const double ideal = work_of(manifests) / (4 * kCores);
      std::printf(
          "pp4, %d hosts of %d cores, %s: %.3f s; work / cores %.3f s, ratio %.2f; one stage after the other "
          "%.3f s; %d compiles, %zu bytes of kernels sent\n",
          4, kCores, shares_files ? "one directory" : "a directory each", seconds, ideal, seconds / ideal,
          work_of(manifests) / kCores, farm.compiles(), farm.hub.entry_bytes());
      EXPECT_EQ(farm.hub.entry_bytes() == 0, shares_files);
      const bool as_it_should_be = seconds <= 1.2 * ideal && farm.compiles() == 28;
      if (last && !kSanitized) EXPECT_TRUE(as_it_should_be);
      return as_it_should_be;
    });
}

TEST(BuildFarm, ASlowHostHoldsNobodyUp) {
  // Alone it would need ten times as long for its share as the others.
  const std::vector<int64_t> costs(32, 50);
  const Manifests manifests(4, {manifest(0, costs)});
  for (const bool shares_files : {true, false})
    expect_of_some([&](bool last) {
      const Folder folder;
      std::vector<std::filesystem::path> directories;
      for (int i = 0; i < 4; ++i)
        directories.push_back(shares_files ? folder.path() : folder.path() / std::to_string(i));
      Farm farm(directories, {1, 10, 1, 1}, 2);
      const double seconds = farm.build(manifests);
      farm.expect_complete(manifests);
      uint64_t helped = 0;
      for (const auto& host : farm.hosts) helped += host->report->helped;
      // The slow host has begun two kernels, which last 0.5 s there; its share alone would last 2 s.
      std::printf(
          "one of 4 hosts 10 times slower, %s: %.3f s (its share alone: 2 s; equally fast: 0.2 s), %d compiles "
          "for 32 kernels, %llu in the place of others\n",
          shares_files ? "one directory" : "a directory each", seconds, farm.compiles(),
          static_cast<unsigned long long>(helped));
      EXPECT_GE(helped, 4u);
      const bool as_it_should_be = seconds < 1.0 && farm.compiles() <= 40;
      if (last && !kSanitized) EXPECT_TRUE(as_it_should_be);
      return as_it_should_be;
    });
}

TEST(BuildFarm, ASlowHostIsNotWaitedForWhenOnlyItsKernelsAreLeft) {
  // The slow host begins its kernels at once and would be at them for 20 s.
  const std::vector<int64_t> costs(4, 100);
  const Manifests manifests(2, {manifest(0, costs)});
  const Folder folder;
  auto farm = std::make_unique<Farm>(std::vector<std::filesystem::path>{folder.path(), folder.path()},
                                     std::vector<double>{1, 30}, 2);
  const double seconds = farm->build(manifests);
  farm->expect_complete(manifests);
  const auto begin = Clock::now();
  farm.reset();
  std::printf(
      "a host 30 times slower with half of the work under way: complete after %.2f s, its threads ended %.2f s "
      "later\n",
      seconds, seconds_since(begin));
  if (!kSanitized) {
    EXPECT_LT(seconds, 1.5);
  }
}

TEST(BuildFarm, AKernelThatDoesNotCompileEndsAllWithItsNameAndLog) {
  std::vector<int64_t> costs(40, 40);
  KernelManifest broken = manifest(0, costs);
  broken.kernels[17].source.text += " error ";
  const Manifests manifests{{manifest(100, costs)}, {broken}, {manifest(200, costs)}};
  Farm farm({{}, {}, {}}, {1, 1, 1}, 2);
  const double seconds = farm.build(manifests);
  for (const auto& host : farm.hosts) {
    ASSERT_TRUE(host->report.has_error());
    EXPECT_THAT(host->report.error().message, AllOf(HasSubstr("kernel_17"), HasSubstr("the log says so")));
  }
  if (!kSanitized) {
    EXPECT_LT(seconds, 1.5);
  }
  EXPECT_LT(farm.compiles(), 120) << "the others went on";
}

TEST(BuildFarm, FailingOnOneHostEndsAll) {
  const std::vector<int64_t> costs(40, 100);
  Farm farm({{}, {}}, {1, 1}, 1);
  std::thread failing([&] {
    std::this_thread::sleep_for(100ms);
    farm.hosts[1]->farm->fail(corrupt("the weights are broken"));
  });
  const double seconds = farm.build(Manifests(2, {manifest(0, costs)}));
  failing.join();
  for (const auto& host : farm.hosts) {
    ASSERT_TRUE(host->report.has_error());
    EXPECT_THAT(host->report.error().message, HasSubstr("the weights are broken"));
  }
  EXPECT_LT(seconds, 1.5);
  EXPECT_EQ(farm.hosts[0]->report.error().kind, ErrorKind::kCancelled);
  EXPECT_EQ(farm.hosts[1]->report.error().kind, ErrorKind::kCorrupt);
}

TEST(BuildFarm, ALostHostIsReplaced) {
  const std::vector<int64_t> costs(24, 30);
  const Manifests manifests(3, {manifest(0, costs)});
  Farm farm({{}, {}, {}}, {1, 1, 1}, 2);
  std::thread losing([&] {
    std::this_thread::sleep_for(45ms);
    farm.hub.lose(2);
  });
  farm.build(manifests);
  losing.join();
  EXPECT_TRUE(farm.hosts[2]->report.has_error());
  farm.hosts.pop_back();
  farm.expect_complete(manifests);
}

TEST(BuildFarm, SpoiledKernelsAreBuiltAgain) {
  const std::vector<int64_t> costs(12, 10);
  const Manifests manifests(2, {manifest(0, costs)});
  Farm farm({{}, {}}, {1, 1}, 2);
  farm.hub.spoil_entries();
  farm.build(manifests);
  farm.expect_complete(manifests);
  EXPECT_EQ(farm.hosts[0]->report->received + farm.hosts[1]->report->received, 0u);
  EXPECT_EQ(farm.compiles(), 24);
}

TEST(BuildFarm, HostsWithDifferentCompilersBuildForThemselves) {
  const std::vector<int64_t> costs(10, 10);
  const Manifests manifests(2, {manifest(0, costs)});
  MemoryHub hub(2);
  SleepingCompiler old(1, "1.0"), young(1, "2.0");
  std::vector<std::unique_ptr<FarmLink>> links;
  KernelCache caches[2] = {KernelCache({}), KernelCache({})};
  std::vector<Result<FarmReport>> reports(2, FarmReport{});
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) links.push_back(hub.link(i));
  for (int i = 0; i < 2; ++i)
    threads.emplace_back([&, i] {
      BuildFarm farm(caches[i], i == 0 ? old : young, links[static_cast<size_t>(i)].get(),
                     {.cores = 2, .progress = {}});
      reports[static_cast<size_t>(i)] = farm.build(manifests);
    });
  for (std::thread& thread : threads) thread.join();
  for (const auto& report : reports) {
    ASSERT_FALSE(report.has_error()) << report.error().message;
    EXPECT_EQ(report->built, 10u);
  }
}

// What a restarted server does: kernels of the size that Hopper's have.
TEST(BuildFarm, AWarmCacheLeavesNothingToBuild) {
  const Folder folder;
  std::mt19937 random(3);
  const std::vector<int64_t> costs(100, 1);
  const Manifests manifests(2, {manifest(0, costs)});
  constexpr size_t kCubinBytes = 100 << 10;
  double cold = 0, warm = 0;
  for (double* seconds : {&cold, &warm}) {
    Farm farm({folder.path(), folder.path()}, {1, 1}, 2);
    for (const auto& host : farm.hosts) host->compiler.cubin_bytes = kCubinBytes;
    *seconds = farm.build(manifests);
    farm.expect_complete(manifests);
    if (seconds == &cold) continue;
    EXPECT_EQ(farm.compiles(), 0);
    for (const auto& host : farm.hosts) EXPECT_EQ(host->report->from_cache, 100u);
  }
  std::printf("100 kernels of %zu KiB on 2 hosts: cold %.3f s, warm %.3f s\n", kCubinBytes >> 10, cold, warm);
}

TEST(BuildFarm, DrawnFarmsEndWithEverythingInItsPlace) {
  std::mt19937 random(11);
  const int64_t cases = repetitions(20);
  int compiles = 0;
  size_t kernels = 0;
  for (int64_t i = 0; i < cases; ++i) {
    const size_t hosts = 1 + random() % 5;
    Manifests manifests(hosts);
    for (auto& ranks : manifests) {
      ranks.resize(1 + random() % 2);
      for (KernelManifest& rank : ranks)
        for (size_t kernel = random() % 20; kernel > 0; --kernel) {
          const auto number = static_cast<int>(random() % 40);
          rank.kernels.push_back(entry(number, number % 8));
        }
    }
    const Folder folder;
    std::vector<std::filesystem::path> directories;
    std::vector<double> factors;
    for (size_t host = 0; host < hosts; ++host) {
      // Some share a directory, some have none.
      const unsigned kind = random() % 3;
      directories.push_back(kind == 0 ? std::filesystem::path() : folder.path() / std::to_string(kind));
      factors.push_back(random() % 4 == 0 ? 8 : 1);
    }
    Farm farm(directories, factors, 1 + static_cast<int>(random() % 3));
    farm.build(manifests);
    farm.expect_complete(manifests);
    compiles += farm.compiles();
    kernels += farm.hosts.front()->report->kernels;
    if (HasFatalFailure()) return;
  }
  std::printf("%lld farms of up to 5 hosts: %zu kernels, %d compiles\n", static_cast<long long>(cases), kernels,
              compiles);
}

}  // namespace
}  // namespace plait::jit
