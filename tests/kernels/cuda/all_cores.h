// Work for all cores of the machine: what the CPU has to say of a GPU's results takes longer than the results.
#pragma once

#include <cstdint>

#include "base/thread_pool.h"

namespace plait::cuda::testing {

// Calls work(begin, end) for pieces that make up [0, count), on all cores at once.
template <typename Work>
void on_all_cores(int64_t count, const Work& work, int64_t piece = 64) {
  static ThreadPool pool(/*threads=*/0);
  pool.parallel_for(count, piece, [&](int64_t begin, int64_t end, int) { work(begin, end); });
}

}  // namespace plait::cuda::testing
