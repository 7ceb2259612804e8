// Runs the jobs of a load on threads of its own while the calling thread reports progress.
#pragma once

#include <functional>
#include <span>

#include "base/error.h"
#include "checkpoint/weight_loader.h"

namespace plait {

// Calls run(i) once for each i, on `threads` threads (0: one per usable core), beginning in the order of i. The first
// failure stops the rest: jobs in hand end, no other begins, and the failure with the lowest i is returned. An
// exception counts as a failure. `progress` is called about ten times a second, and at the end of a load that
// succeeded.
Status run_load_jobs(std::span<const size_t> job_bytes, int threads, const LoadProgress& progress,
                     const std::function<Status(size_t job)>& run);

}  // namespace plait
