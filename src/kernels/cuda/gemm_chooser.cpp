#include "kernels/cuda/gemm_chooser.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/assert.h"
#include "base/round.h"

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

int64_t blocks_of(const GemmShape& shape, const NarrowGemmConfig& config, int64_t rows) {
  return ceil_div(shape.n, 64) * config.split * ceil_div(rows, config.tokens);
}
int64_t blocks_at_once(const DeviceModel& device, const GemmShape& shape, const NarrowGemmConfig& config) {
  return device.multiprocessors * (device.shared_bytes_per_block / shared_bytes_of(shape, config));
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

// -- Candidates

// As many stages as fit beside each other in `bytes`, at most `most`; 0 if not even two do.
template <typename Config>
int stages_that_fit(const GemmShape& shape, Config config, int64_t bytes, int most) {
  for (config.stages = most; config.stages >= 2; --config.stages)
    if (shared_bytes_of(shape, config) <= bytes && !validate(shape, config).has_error()) return config.stages;
  return 0;
}

// Few, since each is a kernel that is compiled: what more widths would win is in docs/kernels.md. Clusters never won by
// more than the noise, so they are left out.
struct Widths {
  int block_m;
  std::array<int, 3> block_n;
};
constexpr Widths kWidths[] = {{64, {32, 64, 128}}, {128, {128, 192, 256}}};

void add_wide(const DeviceModel& device, const GemmShape& shape, std::vector<GemmKernel>& kernels) {
  for (const Widths& widths : kWidths)
    for (const int block_n : widths.block_n) {
      // Blocks of the contiguous form are those that the rows were aligned for.
      if (shape.rows == GemmRows::kContiguous && widths.block_m != 128) continue;
      GemmConfig config{.block_m = widths.block_m, .block_n = block_n};
      // The sum and the products of 64 x 256 do not fit the registers of a warpgroup.
      if (shape.format == GemmFormat::kFp8 && block_n == 256) config.waves = 2;
      config.stages = stages_that_fit(shape, config, device.shared_bytes_per_block, 8);
      if (config.stages > 0) kernels.push_back({shape, config});
    }
}

constexpr int kNarrowStages = 4;       // so that several blocks fit on a multiprocessor
constexpr int kMostNarrowStages = 16;  // where one is alone on its multiprocessor

// With so few strips of 64 columns one pass leaves multiprocessors idle, however it is split: the router's product.
bool is_small(const DeviceModel& device, const GemmShape& shape) {
  return ceil_div(shape.n, 64) * 8 <= device.multiprocessors * 7 / 8;  // clusters of eight do not fill a GPU
}

// Those that have room for all rows at once: a second pass would read the weights again. With few of these, passes side
// by side cost less than idle multiprocessors.
void add_narrow(const DeviceModel& device, const GemmShape& shape, int64_t rows, std::vector<GemmKernel>& kernels) {
  if (shape.rows != GemmRows::kDense) return;
  const bool small = is_small(device, shape);
  const auto add = [&](NarrowGemmConfig config) {
    if (!validate(shape, config).has_error()) kernels.push_back({shape, config});
  };
  for (const int tokens : {8, 16, 32, 64}) {
    if (tokens < rows || tokens >= 2 * std::max<int64_t>(rows, 8)) continue;
    for (const int split : {1, 2, 4, 8}) {
      add({.tokens = tokens, .split = split, .stages = kNarrowStages});
      if (!small) continue;
      NarrowGemmConfig deep{.tokens = tokens, .split = split};
      const int64_t stages = ceil_div(shape.k * element_bytes(shape.format), 128 * split);
      const auto most = static_cast<int>(std::min<int64_t>(stages, kMostNarrowStages));
      deep.stages = stages_that_fit(shape, deep, device.shared_bytes_per_block, most);
      if (deep.stages > kNarrowStages) add(deep);
    }
  }
  for (const int tokens : {32, 64}) {
    const NarrowGemmConfig config{.tokens = tokens, .split = 8, .stages = kNarrowStages};
    const bool at_once = blocks_of(shape, config, rows) <= blocks_at_once(device, shape, config);
    if (small && tokens < rows && at_once) add(config);
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
  const int64_t largest = rows_class(rows);
  std::vector<GemmKernel> kernels;
  add_narrow(device, shape, largest, kernels);
  add_wide(device, shape, kernels);
  PLAIT_ASSERT(!kernels.empty(), "a product that no kernel multiplies");
  // The first of equal ones: a choice is the same everywhere.
  return *std::ranges::min_element(kernels, {},
                                   [&](const GemmKernel& kernel) { return expected_seconds(device, kernel, largest); });
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
