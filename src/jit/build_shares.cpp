#include "jit/build_shares.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <tuple>

namespace plait::jit {
namespace {

// Whole microseconds, so that sums are exact and equal on every host.
int64_t cost_of(const BuildItem& item) {
  constexpr double kMost = 1e9;  // seconds
  return std::max<int64_t>(1, std::llround(std::clamp(item.seconds, 0.0, kMost) * 1e6));
}

// A host while work is handed out.
struct Load {
  std::vector<int64_t> cores;  // microseconds of each; a heap, the least in front
  int64_t total = 0;
  std::vector<size_t> share;

  void add(size_t item, int64_t cost) {
    std::ranges::pop_heap(cores, std::greater<>());
    cores.back() += cost;
    std::ranges::push_heap(cores, std::greater<>());
    total += cost;
    share.push_back(item);
  }
};

}  // namespace

std::vector<BuildItem> builds_of(std::span<const std::vector<KernelManifest>> of_builders,
                                 const CompilerIdentity& compiler) {
  std::map<Digest, BuildItem> items;
  for (size_t builder = 0; builder < of_builders.size(); ++builder) {
    for (const KernelManifest& manifest : of_builders[builder]) {
      for (const ManifestEntry& entry : manifest.kernels) {
        const Digest key = kernel_key(entry.source, compiler);
        const auto [at, is_new] = items.try_emplace(key);
        BuildItem& item = at->second;
        if (is_new) {
          item.key = key;
          item.source = entry.source;
        }
        item.seconds = std::max(item.seconds, entry.compile_seconds);
        if (item.users.empty() || item.users.back() != static_cast<int>(builder))
          item.users.push_back(static_cast<int>(builder));
      }
    }
  }
  std::vector<BuildItem> merged;
  merged.reserve(items.size());
  for (auto& [key, item] : items) merged.push_back(std::move(item));
  return merged;
}

std::vector<std::vector<size_t>> share_builds(std::span<const BuildItem> items, std::span<const Builder> builders) {
  std::vector<size_t> order(items.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::sort(order, [&](size_t a, size_t b) {
    return std::tuple(-cost_of(items[a]), items[a].key) < std::tuple(-cost_of(items[b]), items[b].key);
  });
  std::vector<Load> loads;
  for (const Builder& builder : builders) {
    Load& load = loads.emplace_back();
    load.cores.assign(static_cast<size_t>(std::max(builder.cores, 0)), 0);
  }
  for (const size_t item : order) {
    Load* best = nullptr;
    std::tuple<int64_t, bool, int64_t> least;
    for (size_t builder = 0; builder < loads.size(); ++builder) {
      Load& load = loads[builder];
      if (load.cores.empty()) continue;
      const bool a_stranger = !std::ranges::binary_search(items[item].users, static_cast<int>(builder));
      const std::tuple here{load.cores.front(), a_stranger, load.total / std::ssize(load.cores)};
      if (best && here >= least) continue;
      best = &load;
      least = here;
    }
    if (!best) break;  // nobody builds
    best->add(item, cost_of(items[item]));
  }
  std::vector<std::vector<size_t>> shares;
  for (Load& load : loads) shares.push_back(std::move(load.share));
  return shares;
}

}  // namespace plait::jit
