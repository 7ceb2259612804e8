#include "kernels/cuda/gemm_chooser.h"

#include <algorithm>
#include <cmath>

#include "base/assert.h"
#include "base/round.h"
#include "kernels/cuda/gemm_table.h"

namespace plait::cuda {
namespace {

// -- The model. Its constants were fitted to 978 times of an H200 (docs/kernels.md); what differs between devices is in
// the DeviceModel.

constexpr double kLaunchSeconds = 2.6e-6;
constexpr double kTileSeconds = 0.27e-6;        // of a tile beside its products: filling the stages,
constexpr double kResultSeconds = 7.65e-11;     // and writing a result
constexpr double kMissingRowSeconds = 1.12e-9;  // that a copy spends on a row beyond the last one
constexpr double kReachedBandwidth = 0.72;      // of memory, when computing costs nothing

// Narrow products.
constexpr double kNarrowBandwidth = 0.9;        // of memory
constexpr double kFetchSeconds = 1.1e-6;        // from asking for a stage until it is there
constexpr double kBlockSeconds = 0.5e-6;        // of a block, beside others on its multiprocessor
constexpr double kSharedTokenSeconds = 5.5e-8;  // of a token whose sums the blocks of a cluster put together
constexpr double kAgainBandwidth = 4e10;        // of a multiprocessor, for weights that it or others have read before

// Of the peak. A stage costs some columns more than it has: its barriers, its scales, its sums. One warpgroup alone
// does not keep the tensor cores busy while it adds up.
double reached_peak(const GemmShape& shape, const GemmConfig& config) {
  const bool fp8 = shape.format == GemmFormat::kFp8;
  const double columns = config.block_n / (config.block_n + (fp8 ? 91.0 : 65.0));
  return (fp8 ? 1.08 : 0.94) * columns * (config.block_m == 128 ? 1 : 0.84) * (config.waves == 1 ? 1 : 0.89);
}

// Of two things that go on side by side: a little more than the longer one.
double together(double a, double b) {
  return std::cbrt(a * a * a + b * b * b);
}

double peak(const DeviceModel& device, GemmFormat format) {
  return format == GemmFormat::kFp8 ? device.fp8_flops : device.bf16_flops;
}

double bytes_moved(const GemmShape& shape, int64_t rows) {
  const auto element = static_cast<double>(element_bytes(shape.format));
  const auto n = static_cast<double>(shape.n), k = static_cast<double>(shape.k);
  const double groups = shape.groups;
  const bool for_each_group = shape.rows == GemmRows::kMasked || shape.rows == GemmRows::kBatched;
  const double all = static_cast<double>(rows) * (for_each_group ? groups : 1);
  return groups * n * k * element + all * k * element + all * n * static_cast<double>(element_bytes(shape.result));
}

int64_t row_tiles(const GemmShape& shape, const GemmConfig& config, int64_t rows) {
  switch (shape.rows) {
    case GemmRows::kDense:
      return ceil_div(rows, config.block_m);
    case GemmRows::kContiguous:
      return ceil_div(rows, config.block_m) + shape.groups / 2;  // the last tile of a group is half full
    case GemmRows::kMasked:
    case GemmRows::kBatched:
      return shape.groups * ceil_div(rows, config.block_m);
  }
  return 0;
}

double seconds(const DeviceModel& device, const GemmShape& shape, const GemmConfig& config, int64_t rows) {
  const auto k = static_cast<double>(shape.k);
  const double per_multiprocessor = peak(device, shape.format) / device.multiprocessors;
  const double compute = 2.0 * config.block_m * config.block_n * k / (per_multiprocessor * reached_peak(shape, config));
  const bool short_of_rows = shape.rows == GemmRows::kDense && rows < config.block_m;
  const double missing_rows = short_of_rows ? static_cast<double>(config.block_m - rows) : 0;
  const auto stages = static_cast<double>(ceil_div(shape.k * element_bytes(shape.format), 128));
  const double tile = compute + kTileSeconds + kResultSeconds * config.block_m * config.block_n +
                      missing_rows * stages * kMissingRowSeconds;
  const int64_t tiles = row_tiles(shape, config, rows) * ceil_div(shape.n, config.block_n);
  const auto rounds = static_cast<double>(ceil_div(tiles, device.multiprocessors));
  return kLaunchSeconds +
         together(rounds * tile, bytes_moved(shape, rows) / (device.read_bandwidth * kReachedBandwidth));
}

double seconds(const DeviceModel& device, const GemmShape& shape, const NarrowGemmConfig& config, int64_t rows) {
  const int64_t blocks = blocks_of(shape, config, rows);
  const auto rounds = static_cast<double>(ceil_div(blocks, blocks_at_once(device, shape, config)));
  const auto stages = static_cast<double>(ceil_div(shape.k * element_bytes(shape.format), 128)) / config.split;
  const double waiting = rounds * stages * kFetchSeconds / config.stages;
  const auto weights = static_cast<double>(shape.n * shape.k * element_bytes(shape.format));
  const auto passes_again = static_cast<double>(ceil_div(rows, config.tokens) - 1);
  const double reading = bytes_moved(shape, rows) / (device.read_bandwidth * kNarrowBandwidth) +
                         passes_again * weights / (device.multiprocessors * kAgainBandwidth);
  // Its tiles are those of a wide kernel with one warpgroup, turned over.
  const double per_multiprocessor = peak(device, shape.format) / device.multiprocessors *
                                    reached_peak(shape, {.block_m = 64, .block_n = config.tokens});
  const auto blocks_of_one = static_cast<double>(ceil_div(blocks, device.multiprocessors));
  const double computing =
      blocks_of_one * 2.0 * 64 * config.tokens * static_cast<double>(shape.k) / (config.split * per_multiprocessor);
  const auto blocks_each = static_cast<double>(blocks) / device.multiprocessors;
  return kLaunchSeconds + std::max({waiting, reading, computing}) + blocks_each * kBlockSeconds +
         (config.split > 1 ? config.tokens * kSharedTokenSeconds : 0);
}

}  // namespace

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
  const int64_t largest = rows_class(rows);
  if (device.table != nullptr)
    if (const GemmKernel* measured = device.table->find(shape, largest, device.deterministic)) return *measured;
  std::vector<GemmKernel> kernels = usual_candidates(device, shape, largest);
  if (device.deterministic)
    std::erase_if(kernels, [order = deterministic_order(shape)](const GemmKernel& kernel) {
      return summing_order(kernel) != order;
    });
  PLAIT_ASSERT(!kernels.empty(), "a product that no kernel multiplies");
  // The first of equal ones: a choice is the same everywhere.
  return *std::ranges::min_element(kernels, {},
                                   [&](const GemmKernel& kernel) { return expected_seconds(device, kernel, largest); });
}

std::vector<int64_t> rows_classes(int64_t first, int64_t last) {
  std::vector<int64_t> classes;
  for (int64_t rows = first; rows <= last; rows = classes.back() + 1) classes.push_back(rows_class(rows));
  return classes;
}

std::vector<GemmChoice> gemm_choices(const DeviceModel& device, const GemmShape& shape, int64_t most_rows) {
  std::vector<GemmChoice> choices;
  for (int64_t first = 1; first <= most_rows;) {
    const int64_t last = std::min(rows_class(first), most_rows);
    const GemmKernel kernel = choose_gemm(device, shape, first);
    if (!choices.empty() && choices.back().kernel == kernel)
      choices.back().last_rows = last;
    else
      choices.push_back({first, last, kernel});
    first = last + 1;
  }
  return choices;
}

}  // namespace plait::cuda
