// Work for all cores of the machine: what the CPU has to say of a GPU's results takes longer than the results.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace plait::cuda::testing {

// Calls work(begin, end) for pieces that make up [0, count), on all cores at once.
template <typename Work>
void on_all_cores(int64_t count, const Work& work, int64_t piece = 64) {
  std::atomic<int64_t> next = 0;
  const auto take = [&] {
    for (int64_t begin = next.fetch_add(piece); begin < count; begin = next.fetch_add(piece))
      work(begin, std::min(begin + piece, count));
  };
  const int64_t pieces = (count + piece - 1) / piece;
  const auto threads = std::min<int64_t>(std::max(std::thread::hardware_concurrency(), 1U), pieces);
  std::vector<std::jthread> others;
  for (int64_t i = 1; i < threads; ++i) others.emplace_back(take);
  take();
}

}  // namespace plait::cuda::testing
