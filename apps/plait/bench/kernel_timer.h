// Times kernels on a GPU, and checks their results before.
//
// Method: operands are random and in several sets that together exceed the second-level cache more than twice; launches
// take them in turn. A figure is the median of several batches of launches between two events; while the host queues a
// batch the device is kept busy by writing memory, so that no figure has the time of a launch in it. A wrong kernel has
// no time: some results are compared with sums in double precision on the host, all columns of their rows must have
// been written, and rows that do not exist must not.
//
// Belongs to the thread of its device; compiles on all cores.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bench/kernel_problem.h"
#include "jit/cache.h"
#include "kernels/cuda/gemm_candidates.h"

namespace plait {

struct TimerOptions {
  int batches = 7;
  double batch_seconds = 4e-3;
  uint32_t seed = 0;  // of operands and layouts
};

class KernelTimer {
 public:
  // All outlive the timer.
  static Result<std::unique_ptr<KernelTimer>> create(const cuda::Device& device, jit::Compiler& compiler,
                                                     jit::KernelCache& cache, const TimerOptions& options);

  // Compiles, or takes from the cache, what will be timed.
  Status prepare(std::span<const jit::KernelSource> sources);

  // Lays out operands for the products that follow. `room`: of a masked group.
  Status begin(const cuda::GemmShape& shape, int64_t rows, int64_t room);
  const RowLayout& layout() const { return layout_; }
  // Seconds of a kernel of that shape. kCorrupt: its results are wrong.
  Result<double> time(const cuda::GemmKernel& kernel);
  // `rows`, `room`: as those of the product that takes the result.
  Result<double> time(const cuda::QuantizeShape& shape, int64_t rows, int64_t room);

  // Of kernels timed since begin, those whose bits differ from others of the same summing order.
  const std::vector<std::string>& unequal() const { return unequal_; }
  size_t compared() const { return compared_; }  // since the timer was made, kernels that others were compared with

 private:
  KernelTimer(const cuda::Device& device, jit::Compiler& compiler, jit::KernelCache& cache, const TimerOptions& options,
              cuda::Stream stream)
      : device_(device), compiler_(compiler), cache_(cache), options_(options), stream_(std::move(stream)) {}

  // Parts of one set of operands, in bytes from its beginning.
  struct Part {
    size_t bytes = 0;
    const Pattern* pattern = nullptr;  // none: results
    const void* host = nullptr;        // copied instead
    size_t at = 0;
  };
  using Launch = std::function<Status(int set)>;

  Status place(std::vector<Part>& parts);
  Status fill(const std::vector<Part>& parts, size_t set_begin);
  cuda::DevicePointer pointer(const Part& part, int set) const;
  cuda::GemmOperands operands(int set) const;
  Result<std::string> cubin_of(const jit::KernelSource& source);
  Result<Launch> load(const cuda::GemmKernel& kernel);
  Status check(const Launch& launch, const cuda::GemmKernel& kernel);
  Status check(const Launch& launch, const cuda::QuantizeShape& shape);
  Result<double> time(const Launch& launch);

  const cuda::Device& device_;
  jit::Compiler& compiler_;
  jit::KernelCache& cache_;
  const TimerOptions options_;
  cuda::Stream stream_;
  cuda::DeviceBuffer arena_;  // all sets of operands
  cuda::DeviceBuffer busy_;   // written while launches are queued
  size_t set_bytes_ = 0;
  int sets_ = 0;
  std::vector<Part> parts_;

  std::map<cuda::GemmFormat, std::unique_ptr<GemmPatterns>> patterns_;
  cuda::GemmShape shape_;
  RowLayout layout_;
  std::vector<ExpectedRow> expected_;
  std::map<std::string, std::vector<uint8_t>> bits_;  // of the first kernel of each summing order
  std::vector<std::string> unequal_;
  size_t compared_ = 0;
};

}  // namespace plait
