// The kernels that a rank can ever run, as data: what start-up builds, `plait plan --kernels` prints and
// `plait compile` puts into a cache.
//
// A plain value. It is made by a pure function of the model, the parallel layout, the device and the limits
// (engine/kernel_manifest), the same on every rank that asks, so ranks can share the building without talking first.
#pragma once

#include <string>
#include <vector>

#include "jit/kernel_source.h"

namespace plait::jit {

struct ManifestEntry {
  KernelSource source;
  double compile_seconds = 0;      // expected, on one core; a weight for sharing work, never a limit
  std::vector<std::string> calls;  // who needs it, for people: "layers 3-60 experts.down, 1-512 rows a group"
};

// In the order of their names; no two entries have one key.
struct KernelManifest {
  std::vector<ManifestEntry> kernels;
};

}  // namespace plait::jit
