#include "kernels/cuda/gemm_candidates.h"

#include <algorithm>
#include <array>

#include "base/round.h"
#include "kernels/cuda/gemm_maps.h"

namespace plait::cuda {
namespace {

constexpr int kMostStages = 8;
constexpr int kNarrowStages = 4;       // so that several blocks fit on a multiprocessor
constexpr int kMostNarrowStages = 16;  // where one is alone on its multiprocessor

// As many stages as fit, at most `most`; 0 if not even two do.
template <typename Config>
int stages_that_fit(const DeviceModel& device, const GemmShape& shape, Config config, int most) {
  for (config.stages = most; config.stages >= 2; --config.stages)
    if (shared_bytes_of(shape, config) <= device.shared_bytes_per_block && !validate(shape, config).has_error())
      return config.stages;
  return 0;
}

void add(GemmKernel kernel, std::vector<GemmKernel>& kernels) {
  if (std::ranges::find(kernels, kernel) == kernels.end()) kernels.push_back(kernel);
}

void add_wide(const DeviceModel& device, const GemmShape& shape, GemmConfig config, std::vector<GemmKernel>& kernels) {
  // Blocks of the contiguous form are those that the rows were aligned for.
  if (shape.rows == GemmRows::kContiguous && config.block_m != 128) return;
  // The sum and the products of 64 x 256 do not fit the registers of a warpgroup.
  if (shape.format == GemmFormat::kFp8 && config.block_n == 256) config.waves = 2;
  config.stages = stages_that_fit(device, shape, config, kMostStages);
  if (config.stages > 0) add({shape, config}, kernels);
}

void add_narrow(const DeviceModel& device, const GemmShape& shape, const NarrowGemmConfig& config,
                std::vector<GemmKernel>& kernels) {
  if (!validate(shape, config).has_error() && shared_bytes_of(shape, config) <= device.shared_bytes_per_block)
    add({shape, config}, kernels);
}

// What more widths would win is in docs/kernels.md. Clusters never won by more than the noise, so they are left out.
struct Widths {
  int block_m;
  std::array<int, 3> block_n;
};
constexpr Widths kUsualWidths[] = {{64, {32, 64, 128}}, {128, {128, 192, 256}}};

constexpr int kAllWidths[] = {16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 256};

// With so few strips of 64 columns one pass leaves multiprocessors idle, however it is split: the router's product.
bool is_small(const DeviceModel& device, const GemmShape& shape) {
  return ceil_div(shape.n, 64) * 8 <= device.multiprocessors * 7 / 8;  // clusters of eight do not fill a GPU
}

// As many stages as one block has room for, and needs.
NarrowGemmConfig deepened(const DeviceModel& device, const GemmShape& shape, NarrowGemmConfig config) {
  const int64_t stages = ceil_div(shape.k * element_bytes(shape.format), kBlockBytes * config.split);
  const auto most = static_cast<int>(std::min<int64_t>(stages, kMostNarrowStages));
  config.stages = std::max(stages_that_fit(device, shape, config, most), kNarrowStages);
  return config;
}

// Tiles that hold all rows at once: a second pass would read the weights again.
bool holds(int tokens, int64_t rows) {
  return tokens >= rows && tokens < 2 * std::max<int64_t>(rows, 8);
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

int64_t blocks_of(const GemmShape& shape, const NarrowGemmConfig& config, int64_t rows) {
  return ceil_div(shape.n, 64) * config.split * ceil_div(rows, config.tokens);
}

int64_t blocks_at_once(const DeviceModel& device, const GemmShape& shape, const NarrowGemmConfig& config) {
  return device.multiprocessors * (device.shared_bytes_per_block / shared_bytes_of(shape, config));
}

std::vector<GemmKernel> usual_candidates(const DeviceModel& device, const GemmShape& shape, int64_t rows) {
  std::vector<GemmKernel> kernels;
  const bool small = is_small(device, shape);
  if (shape.rows == GemmRows::kDense)
    for (const int tokens : {8, 16, 32, 64})
      for (const int split : {1, 2, 4, 8}) {
        const NarrowGemmConfig config{.tokens = tokens, .split = split, .stages = kNarrowStages};
        if (holds(tokens, rows)) {
          add_narrow(device, shape, config, kernels);
          if (small) add_narrow(device, shape, deepened(device, shape, config), kernels);
        } else if (small && split == 8 && tokens >= 32 && tokens < rows &&
                   blocks_of(shape, config, rows) <= blocks_at_once(device, shape, config)) {
          // Passes side by side cost less than idle multiprocessors.
          add_narrow(device, shape, config, kernels);
        }
      }
  for (const Widths& widths : kUsualWidths)
    for (const int block_n : widths.block_n)
      add_wide(device, shape, {.block_m = widths.block_m, .block_n = block_n}, kernels);
  return kernels;
}

std::vector<GemmKernel> all_candidates(const DeviceModel& device, const GemmShape& shape, int64_t rows) {
  std::vector<GemmKernel> kernels = usual_candidates(device, shape, rows);
  if (shape.rows == GemmRows::kDense)
    for (const int tokens : {8, 16, 32, 64, 128})
      for (const int split : {1, 2, 3, 4, 6, 8})
        for (const int stages : {4, 6, 8})
          if (holds(tokens, std::min<int64_t>(rows, 128)) && rows <= 256)
            add_narrow(device, shape, {.tokens = tokens, .split = split, .stages = stages}, kernels);
  // Without those that cannot be good: small tiles for many rows, tall ones for few.
  const int64_t in_a_matrix = shape.rows == GemmRows::kContiguous ? ceil_div(rows, shape.groups) : rows;
  for (const int block_m : {64, 128})
    for (const int block_n : kAllWidths)
      for (const GemmShare share : {GemmShare::kNothing, GemmShare::kRows, GemmShare::kWeights}) {
        const bool too_narrow = in_a_matrix > 64 && block_n<32, too_low = in_a_matrix> 512 && block_m < 128;
        const bool too_high = in_a_matrix <= 64 && block_m > 64 && shape.rows != GemmRows::kContiguous;
        if (!too_narrow && !too_low && !too_high)
          add_wide(device, shape, {.block_m = block_m, .block_n = block_n, .share = share}, kernels);
      }
  return kernels;
}

std::optional<GemmKernel> find_candidate(const DeviceModel& device, const GemmShape& shape, int64_t rows,
                                         const std::string& name) {
  for (const GemmKernel& kernel : all_candidates(device, shape, rows))
    if (name_of(kernel) == name) return kernel;
  return std::nullopt;
}

// What device/gemm.cu and device/narrow_gemm.cu do. Both scale the sums of 128 FP8 products and add them up in float32;
// BF16 sums stay in the tensor cores in the first, and leave them after every stage in the second, which also splits k.
SummingOrder summing_order(const GemmKernel& kernel) {
  const GemmShape& shape = kernel.shape;
  const auto* narrow = std::get_if<NarrowGemmConfig>(&kernel.config);
  const int64_t stage = kBlockBytes / element_bytes(shape.format);
  const bool stays = shape.format == GemmFormat::kBf16 && narrow == nullptr;
  return {.chain = stays ? shape.k : std::min(stage, shape.k), .parts = narrow != nullptr ? narrow->split : 1};
}

SummingOrder deterministic_order(const GemmShape& shape) {
  return summing_order({shape, GemmConfig{}});
}

std::string describe(const SummingOrder& order) {
  return fmt::format("sums of {} products{}", order.chain,
                     order.parts > 1 ? fmt::format(", k in {} parts", order.parts) : "");
}

}  // namespace plait::cuda
