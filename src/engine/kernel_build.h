// The kernels of a host's ranks while an engine starts: what they are, and having them built together with the other
// hosts. CPU ranks have none, but in rehearsals (PLAIT_REHEARSE_KERNELS).
//
// Owns compiler, cache and farm for as long as the engine lives. Calls in their order, by one thread; stop() and
// compiles_after_ready() by any.
#pragma once

#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "comm/world.h"
#include "engine/engine.h"
#include "jit/build_farm.h"
#include "jit/cache.h"
#include "jit/manifest.h"
#include "kernels/cuda/device_model.h"

namespace plait {

class KernelLink;

// A pure function, the same on every host. Equal ranks best share one manifest: what they have is then looked at once.
using ManifestOfRank = std::function<std::shared_ptr<const jit::KernelManifest>(int rank)>;

// An engine, as far as its kernels depend on it.
struct KernelUser {
  const ModelConfig& config;
  const ParallelConfig& parallel;  // as judge() has forced it
  const EngineOptions& options;
};
// If its ranks run on `device`. Errors: those of kernels_of_ranks.
Result<ManifestOfRank> manifests_on(const cuda::DeviceModel& device, const KernelUser& user);
// Of ranks without a device: what the environment asks for; empty: they have none.
Result<ManifestOfRank> rehearsed_manifests(const KernelUser& user);

// Where compiled kernels are kept: --kernel-cache-dir, else the user's; empty if there is neither.
std::filesystem::path kernel_cache_directory(const EngineOptions& options);

class KernelBuild {
 public:
  // `directory`: of the cache; empty: kernels are kept in memory.
  KernelBuild(int hosts, int ranks_per_host, const ManifestOfRank& manifest_of, std::filesystem::path directory = {});
  ~KernelBuild();

  bool empty() const { return kernels_ == 0; }  // no rank anywhere has kernels
  // What all hosts must agree on: which kernels all ranks have.
  std::string digest() const;
  // Begins to load the compiler, if there is anything to build: that takes as long as hosts take to meet.
  void begin();
  // After the hosts have met: every host calls it, and then either build() or refuse().
  Status open(std::shared_ptr<comm::World> world);

  using Progress = std::function<void(const jit::FarmProgress&)>;
  // Errors: no compiler; those of the farm.
  Status build(int cores, const Progress& progress);
  // Ends build() on every host.
  void stop(const Error& why);
  // Instead of build(), after an error before it.
  void refuse(const Error& why);

  // Nothing is to be compiled any more.
  void expect_no_builds();
  uint64_t compiles_after_ready() const { return cache_ ? cache_->counters().unexpected : 0; }

 private:
  using Loaded = Result<std::unique_ptr<jit::Compiler>>;
  Status load_compiler();
  std::vector<std::vector<jit::KernelManifest>> of_hosts() const;

  size_t kernels_ = 0;
  const int ranks_per_host_;
  std::vector<std::shared_ptr<const jit::KernelManifest>> of_ranks_;
  const std::filesystem::path directory_;
  std::shared_ptr<comm::World> world_;
  std::unique_ptr<KernelLink> link_;  // null: one host
  bool took_part_ = false;
  std::future<Loaded> loading_;  // the compiler
  std::unique_ptr<jit::Compiler> compiler_;
  std::unique_ptr<jit::KernelCache> cache_;
  std::mutex mutex_;  // of what follows
  std::optional<Error> stopped_;
  std::unique_ptr<jit::BuildFarm> farm_;
};

}  // namespace plait
