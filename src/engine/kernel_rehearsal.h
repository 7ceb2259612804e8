// Kernels out of a file, that ranks without devices build while they start, for rehearsals and tests of start-up: see
// PLAIT_REHEARSE_KERNELS (base/environment.h), which may also name a GPU whose kernels these are. Nothing runs them.
//
// The file is a JSON object: {"kernels": [{"name": "a", "text": "CUDA C++", "entry": "a", "constants": {"kN": 3},
// "seconds": 0.2, "ranks": [0, 1], "modes": ["decode"]}]}. Without "ranks" every rank has it, without "modes" every
// role. Values; one thread.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "jit/compiler.h"
#include "jit/manifest.h"
#include "model/step.h"

namespace plait {

class KernelRehearsal {
 public:
  // Errors name the file and what is wrong in it.
  static Result<KernelRehearsal> read(const std::filesystem::path& file);

  jit::KernelManifest manifest_of(int rank, DisaggregationMode role) const;

 private:
  struct Entry {
    jit::ManifestEntry kernel;
    std::vector<int64_t> ranks;  // empty: all
    std::vector<StepMode> modes;
  };
  std::vector<Entry> entries_;
};

// A compiler that first sleeps `factor` times as long as a kernel's compile_seconds. Kernels that are not in the
// manifests are compiled at once.
std::unique_ptr<jit::Compiler> delay_compiles(std::unique_ptr<jit::Compiler> compiler, double factor,
                                              std::span<const std::shared_ptr<const jit::KernelManifest>> manifests);

}  // namespace plait
