#include "kernels/cuda/gemm_chooser.h"

#include <algorithm>

#include "base/assert.h"

namespace plait::cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// -- The model. Guesses from the design of the kernels, until measurements replace them.

constexpr double kLaunchSeconds = 2e-6;
constexpr double kTileSeconds = 0.4e-6;          // of a tile beside its products: filling the stages, writing results
constexpr double kReachedBandwidth = 0.9;        // of memory
constexpr double kCacheBytesPerSecond = 5.5e12;  // from the second-level cache, all multiprocessors together
constexpr double kClusterSeconds = 1e-6;         // of adding up the parts of k

// Products of short tiles leave the tensor cores waiting for shared memory and for scaling.
double reached_peak(const GemmConfig& config) {
  const double columns = std::min(1.0, config.block_n / 128.0);
  return (config.block_m == 128 ? 0.9 : 0.7) * (0.5 + 0.5 * columns);
}

double peak(const DeviceModel& device, GemmFormat format) {
  return format == GemmFormat::kFp8 ? device.fp8_flops : device.bf16_flops;
}

double bytes_moved(const GemmShape& shape, int64_t rows) {
  const auto element = static_cast<double>(element_bytes(shape.format));
  const auto n = static_cast<double>(shape.n), k = static_cast<double>(shape.k);
  const double groups = shape.groups;
  const double all = static_cast<double>(rows) * (shape.rows == GemmRows::kMasked ? groups : 1);
  return groups * n * k * element + all * k * element + all * n * 2;
}

int64_t row_tiles(const GemmShape& shape, const GemmConfig& config, int64_t rows) {
  switch (shape.rows) {
    case GemmRows::kDense:
      return ceil_div(rows, config.block_m);
    case GemmRows::kContiguous:
      return ceil_div(rows, config.block_m) + shape.groups / 2;  // the last tile of a group is half full
    case GemmRows::kMasked:
      return shape.groups * ceil_div(rows, config.block_m);
  }
  return 0;
}

double seconds(const DeviceModel& device, const GemmShape& shape, const GemmConfig& config, int64_t rows) {
  const auto k = static_cast<double>(shape.k);
  const double per_multiprocessor = peak(device, shape.format) / device.multiprocessors;
  const double compute = 2.0 * config.block_m * config.block_n * k / (per_multiprocessor * reached_peak(config));
  const double fetched_rows = config.block_m * (config.share == GemmShare::kRows ? 0.5 : 1.0) +
                              config.block_n * (config.share == GemmShare::kWeights ? 0.5 : 1.0);
  const double fetch = fetched_rows * k * static_cast<double>(element_bytes(shape.format)) /
                       (kCacheBytesPerSecond / device.multiprocessors);
  const int64_t tiles = row_tiles(shape, config, rows) * ceil_div(shape.n, config.block_n);
  const auto rounds = static_cast<double>(ceil_div(tiles, device.multiprocessors));
  const double work = rounds * (std::max(compute, fetch) + kTileSeconds);
  return kLaunchSeconds + std::max(work, bytes_moved(shape, rows) / (device.read_bandwidth * kReachedBandwidth));
}

double seconds(const DeviceModel& device, const GemmShape& shape, const NarrowGemmConfig& config, int64_t rows) {
  constexpr double kStrip = 64;
  const auto k = static_cast<double>(shape.k);
  const int64_t passes = ceil_div(rows, config.tokens);
  const int64_t blocks = ceil_div(shape.n, 64) * config.split * passes;
  // Every multiprocessor has its part of the bandwidth; the one with most blocks is the last.
  const double block_bytes =
      (kStrip + config.tokens) * k * static_cast<double>(element_bytes(shape.format)) / config.split;
  const double per_multiprocessor = device.read_bandwidth * kReachedBandwidth / device.multiprocessors;
  const auto rounds = static_cast<double>(ceil_div(blocks, device.multiprocessors));
  return kLaunchSeconds + rounds * block_bytes / per_multiprocessor + (config.split > 1 ? kClusterSeconds : 0);
}

// -- Candidates

// As many stages as fit beside each other in `bytes`, at most `most`; 0 if not even two do.
template <typename Config>
int stages_that_fit(const GemmShape& shape, Config config, int64_t bytes, int most) {
  for (config.stages = most; config.stages >= 2; --config.stages)
    if (shared_bytes_of(shape, config) <= bytes && !validate(shape, config).has_error()) return config.stages;
  return 0;
}

void add_wide(const DeviceModel& device, const GemmShape& shape, std::vector<GemmKernel>& kernels) {
  for (const int block_m : {64, 128})
    for (const int block_n : {64, 128, 160})
      for (const GemmShare share : {GemmShare::kNothing, GemmShare::kRows, GemmShare::kWeights}) {
        // Blocks of the contiguous form are those that the rows were aligned for.
        if (shape.rows == GemmRows::kContiguous && block_m != 128) continue;
        if (share != GemmShare::kNothing && block_m != 128) continue;
        GemmConfig config{.block_m = block_m, .block_n = block_n, .share = share};
        config.stages = stages_that_fit(shape, config, device.shared_bytes_per_block, 8);
        if (config.stages > 0) kernels.push_back({shape, config});
      }
}

void add_narrow(const DeviceModel& device, const GemmShape& shape, std::vector<GemmKernel>& kernels) {
  if (shape.rows != GemmRows::kDense) return;
  for (const int tokens : {8, 16, 32, 64})
    for (const int split : {1, 2, 4, 8}) {
      NarrowGemmConfig config{.tokens = tokens, .split = split};
      // Three blocks on a multiprocessor.
      config.stages = stages_that_fit(shape, config, device.shared_bytes_per_block / 3, 8);
      if (config.stages > 0) kernels.push_back({shape, config});
    }
}

}  // namespace

std::string name_of(const GemmKernel& kernel) {
  return std::visit([&](const auto& config) { return name_of(kernel.shape, config); }, kernel.config);
}

jit::KernelSource source_of(const GemmKernel& kernel) {
  if (const auto* narrow = std::get_if<NarrowGemmConfig>(&kernel.config))
    return narrow_gemm_source(kernel.shape, *narrow);
  return gemm_source(kernel.shape, std::get<GemmConfig>(kernel.config));
}

int64_t rows_class(int64_t rows) {
  PLAIT_ASSERT(rows >= 1, "a class of no rows");
  int64_t step = 8;
  if (rows > 128) step = 64;
  for (int64_t end = 1024; rows > end; end *= 2) step = end / 8;
  return ceil_div(rows, step) * step;
}

double expected_seconds(const DeviceModel& device, const GemmKernel& kernel, int64_t rows) {
  return std::visit([&](const auto& config) { return seconds(device, kernel.shape, config, rows); }, kernel.config);
}

GemmKernel choose_gemm(const DeviceModel& device, const GemmShape& shape, int64_t rows) {
  std::vector<GemmKernel> kernels;
  add_narrow(device, shape, kernels);
  add_wide(device, shape, kernels);
  PLAIT_ASSERT(!kernels.empty(), "a product that no kernel multiplies");
  const int64_t largest = rows_class(rows);
  // The first of equal ones: a choice is the same everywhere.
  return *std::ranges::min_element(kernels, {},
                                   [&](const GemmKernel& kernel) { return expected_seconds(device, kernel, largest); });
}

std::vector<GemmChoice> gemm_choices(const DeviceModel& device, const GemmShape& shape, int64_t most_rows) {
  std::vector<GemmChoice> choices;
  for (int64_t first = 1; first <= most_rows;) {
    const int64_t last = std::min(rows_class(first), most_rows);
    GemmKernel kernel = choose_gemm(device, shape, first);
    if (!choices.empty() && choices.back().kernel == kernel)
      choices.back().last_rows = last;
    else
      choices.push_back({first, last, std::move(kernel)});
    first = last + 1;
  }
  return choices;
}

}  // namespace plait::cuda
