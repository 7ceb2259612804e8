// Builds the kernels of all hosts' manifests, together with the other hosts, each kernel once.
//
// A BuildFarm is made for one build on one host and owns the threads that compile, one for each core. What is built
// goes into the KernelCache, which is shared through its directory, or through the link where hosts share no files.
// build() and fail() may be called by different threads; everything else by one.
//
// Every host has a share of the work (build_shares.h) and begins with it. Whoever is through takes what others have not
// begun, and then builds a second time what another one has been at for much longer than it would take here: a slow
// host holds nobody up. A host that is gone is not waited for. The first kernel that does not compile ends the build on
// every host, with its name and the compiler's log.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "jit/cache.h"
#include "jit/farm_link.h"
#include "jit/manifest.h"

namespace plait::jit {

struct FarmProgress {
  size_t done = 0;  // kernels, of all hosts together
  size_t total = 0;
  double fraction = 1;   // of the expected work
  std::string building;  // the kernel that has been under way here for longest; empty: none
};

struct FarmOptions {
  int cores = 0;  // to compile on; 0: all that this process may use
  std::function<void(const FarmProgress&)>
      progress;  // on build()'s thread, when something changed, and now and then; may be empty
  std::chrono::milliseconds hello_patience{500};  // then work begins without knowing who else is there
  std::chrono::milliseconds least_overdue{250};   // no kernel is built a second time before
};

struct FarmReport {
  size_t kernels = 0;       // of all hosts
  size_t needed = 0;        // of this one
  uint64_t built = 0;       // by this one
  uint64_t helped = 0;      // of those, in the place of another one
  uint64_t from_cache = 0;  // found before anything was built
  uint64_t received = 0;    // over the link
  double seconds = 0;
  double compile_seconds = 0;  // of this host's threads together
  std::string slowest;         // of those built here, and its seconds
  double slowest_seconds = 0;
};

class BuildFarm {
 public:
  // All outlive the farm. `link`: null if there is one host.
  BuildFarm(KernelCache& cache, Compiler& compiler, FarmLink* link, FarmOptions options);
  // Waits for compiles that are still under way, if another host was faster: a compile cannot be interrupted.
  ~BuildFarm();

  // `of_builders`: [hosts] the manifests of its ranks; equal on all hosts. Returns when every host has what its ranks
  // run. Called once. Errors: those of Compiler::compile, on whichever host; those of the link; what fail() was told.
  Result<FarmReport> build(std::span<const std::vector<KernelManifest>> of_builders);

  // Ends build() on every host with this error.
  void fail(Error why);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// For a host that cannot take part: ends the build of the others.
void refuse_to_build(FarmLink& link, const Error& why);

}  // namespace plait::jit
