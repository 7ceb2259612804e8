// Who builds which kernel: the manifests of all hosts, shared out by cost over the cores of all hosts.
//
// Pure functions. Every host computes the same shares from the same manifests, so nobody has to be asked.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "jit/kernel_source.h"
#include "jit/manifest.h"

namespace plait::jit {

// One kernel of the union of all hosts' manifests.
struct BuildItem {
  Digest key{};
  KernelSource source;
  double seconds = 0;      // expected, on one core
  std::vector<int> users;  // builders whose ranks run it, ascending
};

// A host: its ranks are threads of one process and share its cores.
struct Builder {
  int cores = 1;  // 0: it takes no part
};

// What there is to build: the union by key, in the order of keys. `of_builders`: [builders] the manifests of its ranks.
std::vector<BuildItem> builds_of(std::span<const std::vector<KernelManifest>> of_builders,
                                 const CompilerIdentity& compiler);

// [builders] indices of items, each in the order in which to build them: costliest first, each for the core that is
// free first (longest processing time first, at most 4/3 of the best). Among equally free cores a host that runs the
// kernel is preferred, then the one with the least work for each of its cores.
std::vector<std::vector<size_t>> share_builds(std::span<const BuildItem> items, std::span<const Builder> builders);

}  // namespace plait::jit
