// Products on one GPU, at the sizes that DeepGEMM's own tests use: time, TFLOP/s, GB/s of every configuration.
//
//   gemm_bench [--rows dense|contiguous|masked] [--m M] [--all]
// Operands are random, in several copies that together exceed the second-level cache and are used in turn; a figure is
// the median of several batches of launches between two events. --all prints every configuration, not only the best.
#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include <fmt/format.h>

#include "jit/nvrtc.h"
#include "kernels/cuda/narrow_gemm.h"

namespace plait::cuda {
namespace {

constexpr int64_t kRotatedBytes = 512LL << 20;
constexpr int kBatches = 7;
constexpr double kBatchSeconds = 4e-3;

struct Case {
  GemmShape shape;
  int64_t m = 0;     // rows in all (kMasked: of a group's room)
  int64_t each = 0;  // kContiguous, kMasked: mean rows of a group
};

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

struct Operands {
  DeviceBuffer a, b, a_scales, b_scales, d, counts, groups;
  GemmOperands pointers;
};

class Bench {
 public:
  Bench(const Device& device, jit::Compiler& compiler, bool all)
      : device_(device), compiler_(compiler), stream_(Stream::create(device).value()), all_(all) {}

  Status run(const Case& c) {
    std::string best_name;
    double best = 1e9;
    rows_.clear();
    const auto consider = [&](double seconds, const std::string& name) {
      if (all_) print(c, seconds, name);
      if (seconds >= best) return;
      best = seconds;
      best_name = name;
    };
    for (const GemmConfig& config : candidates(c)) {
      PLAIT_ASSIGN_OR_RETURN(const double seconds, time<Gemm>(c, config, gemm_source(c.shape, config)));
      consider(seconds, name_of(c.shape, config));
    }
    for (const NarrowGemmConfig& config : narrow_candidates(c)) {
      PLAIT_ASSIGN_OR_RETURN(const double seconds, time<NarrowGemm>(c, config, narrow_gemm_source(c.shape, config)));
      consider(seconds, name_of(c.shape, config));
    }
    print(c, best, (all_ ? "BEST " : "") + best_name);
    return {};
  }

 private:
  static std::vector<GemmConfig> candidates(const Case& c) {
    std::vector<GemmConfig> configs;
    for (const int block_m : {64, 128})
      for (const int block_n : {32, 64, 96, 112, 128, 144, 160, 192})
        for (const GemmShare share : {GemmShare::kNothing, GemmShare::kRows, GemmShare::kWeights}) {
          GemmConfig config{.block_m = block_m, .block_n = block_n, .stages = 8, .share = share};
          // kContiguous: blocks of rows are those that the operands were made for.
          if (c.shape.rows == GemmRows::kContiguous && block_m != 128) continue;
          // Two sums of 64 x 192 do not fit the registers of a warpgroup.
          if (c.shape.format == GemmFormat::kFp8 && block_m == 128 && block_n > 160) continue;
          while (config.stages > 2 && validate(c.shape, config).has_error()) --config.stages;
          if (!validate(c.shape, config).has_error()) configs.push_back(config);
        }
    return configs;
  }

  static std::vector<NarrowGemmConfig> narrow_candidates(const Case& c) {
    std::vector<NarrowGemmConfig> configs;
    if (c.shape.rows != GemmRows::kDense || c.m > 128) return configs;
    for (const int tokens : {8, 16, 32, 64, 128})
      for (const int split : {1, 2, 3, 4, 6, 8})
        for (const int stages : {4, 6, 8}) {
          const NarrowGemmConfig config{.tokens = tokens, .split = split, .stages = stages};
          if (tokens < std::min<int64_t>(c.m, 128) || tokens >= 2 * std::max<int64_t>(c.m, 8)) continue;
          if (!validate(c.shape, config).has_error()) configs.push_back(config);
        }
    return configs;
  }

  // Rows of each group, about c.each, the same every time.
  std::vector<int32_t> counts_of(const Case& c) const {
    std::mt19937 random(7);
    std::uniform_real_distribution<double> factor(0.7, 1.3);
    std::vector<int32_t> counts(static_cast<size_t>(c.shape.groups));
    for (int32_t& count : counts) count = static_cast<int32_t>(static_cast<double>(c.each) * factor(random));
    return counts;
  }

  Result<DeviceBuffer> random_buffer(size_t bytes, bool scales) {
    PLAIT_ASSIGN_OR_RETURN(DeviceBuffer buffer, DeviceBuffer::allocate(device_, bytes));
    std::vector<uint32_t> words(bytes / 4 + 1);
    for (uint32_t& word : words) {
      word = static_cast<uint32_t>(random_());
      // Bytes of e4m3 and halves of bfloat16 of moderate size; scales between 1 and 2.
      word = scales ? 0x3f800000 | (word & 0x7fffff) : word & 0xbfbfbfbf;
    }
    PLAIT_RETURN_IF_ERROR(buffer.write(words.data(), bytes, stream_));
    PLAIT_RETURN_IF_ERROR(stream_.wait());
    return buffer;
  }

  Result<Operands> make(const Case& c) {
    const GemmShape& shape = c.shape;
    const int64_t element = shape.format == GemmFormat::kFp8 ? 1 : 2, blocks_k = ceil_div(shape.k, 128);
    Operands o;
    int64_t m = c.m;
    std::vector<int32_t> counts = counts_of(c), blocks, groups;
    if (shape.rows == GemmRows::kContiguous) {
      for (size_t group = 0; group < counts.size(); ++group)
        for (int32_t first = 0; first < counts[group]; first += 128) {
          blocks.push_back(std::min(counts[group] - first, 128));
          groups.push_back(static_cast<int32_t>(group));
        }
      m = static_cast<int64_t>(blocks.size()) * 128;
      counts = blocks;
    }
    const int64_t rows = m * (shape.rows == GemmRows::kMasked ? shape.groups : 1);
    PLAIT_ASSIGN_OR_RETURN(o.a, random_buffer(static_cast<size_t>(rows * shape.k * element), false));
    PLAIT_ASSIGN_OR_RETURN(o.b, random_buffer(static_cast<size_t>(shape.groups * shape.n * shape.k * element), false));
    const int64_t scale_rows = ceil_div(m, 4) * 4;
    PLAIT_ASSIGN_OR_RETURN(o.a_scales, random_buffer(static_cast<size_t>(scale_rows * blocks_k * 4 * rows / m), true));
    PLAIT_ASSIGN_OR_RETURN(
        o.b_scales, random_buffer(static_cast<size_t>(shape.groups * ceil_div(shape.n, 128) * blocks_k * 4), true));
    PLAIT_ASSIGN_OR_RETURN(o.d, DeviceBuffer::allocate(device_, static_cast<size_t>(rows * shape.n * 2)));
    PLAIT_ASSIGN_OR_RETURN(o.counts, DeviceBuffer::allocate(device_, counts.size() * 4 + 4));
    PLAIT_ASSIGN_OR_RETURN(o.groups, DeviceBuffer::allocate(device_, groups.size() * 4 + 4));
    PLAIT_RETURN_IF_ERROR(o.counts.write(counts.data(), counts.size() * 4, stream_));
    PLAIT_RETURN_IF_ERROR(o.groups.write(groups.data(), groups.size() * 4, stream_));
    PLAIT_RETURN_IF_ERROR(stream_.wait());
    o.pointers = {.a = o.a.pointer(),
                  .a_scales = o.a_scales.pointer(),
                  .scale_rows = scale_rows,
                  .b = o.b.pointer(),
                  .b_scales = o.b_scales.pointer(),
                  .d = o.d.pointer(),
                  .m = m,
                  .row_counts = o.counts.pointer(),
                  .block_groups = o.groups.pointer()};
    return o;
  }

  template <typename Kernel, typename Config>
  Result<double> time(const Case& c, const Config& config, const jit::KernelSource& source) {
    if (rows_.empty()) {
      int64_t bytes = 0;
      while (bytes < kRotatedBytes && rows_.size() < 16) {
        PLAIT_ASSIGN_OR_RETURN(Operands o, make(c));
        bytes += static_cast<int64_t>(o.a.size_bytes() + o.b.size_bytes() + o.d.size_bytes());
        rows_.push_back(std::move(o));
      }
    }
    PLAIT_ASSIGN_OR_RETURN(const jit::CompiledKernel kernel, compiler_.compile(source));
    PLAIT_ASSIGN_OR_RETURN(const Kernel gemm, Kernel::load(device_, c.shape, config, kernel.cubin));
    PLAIT_ASSIGN_OR_RETURN(const Event begin, Event::create(device_));
    PLAIT_ASSIGN_OR_RETURN(const Event end, Event::create(device_));
    std::vector<double> seconds;
    int launches = 4;
    for (int batch = 0; batch <= kBatches; ++batch) {
      PLAIT_RETURN_IF_ERROR(begin.record(stream_));
      for (int i = 0; i < launches; ++i)
        PLAIT_RETURN_IF_ERROR(gemm.launch(rows_[static_cast<size_t>(i) % rows_.size()].pointers, stream_));
      PLAIT_RETURN_IF_ERROR(end.record(stream_));
      PLAIT_RETURN_IF_ERROR(end.wait());
      PLAIT_ASSIGN_OR_RETURN(const double total, end.seconds_since(begin));
      if (batch > 0) seconds.push_back(total / launches);  // the first one warms up, and says how long a launch takes
      if (batch == 0) launches = std::clamp(static_cast<int>(kBatchSeconds / (total / launches)), 4, 200);
    }
    std::ranges::sort(seconds);
    return seconds[seconds.size() / 2];
  }

  void print(const Case& c, double seconds, const std::string& how) const {
    const std::vector<int32_t> counts = counts_of(c);
    double rows = static_cast<double>(c.m);
    if (c.shape.rows != GemmRows::kDense) {
      rows = 0;
      for (const int32_t count : counts) rows += count;
    }
    const double n = static_cast<double>(c.shape.n), k = static_cast<double>(c.shape.k);
    const double element = c.shape.format == GemmFormat::kFp8 ? 1 : 2;
    const double bytes = rows * k * element + c.shape.groups * n * k * element + rows * n * 2;
    fmt::print("{:>7.0f} {:>3} {:>6.0f} {:>6.0f} {:>9.1f} us {:>7.0f} TFLOP/s {:>6.0f} GB/s  {}\n", rows,
               c.shape.groups, n, k, seconds * 1e6, 2 * rows * n * k / seconds / 1e12, bytes / seconds / 1e9, how);
    std::fflush(stdout);
  }

  const Device& device_;
  jit::Compiler& compiler_;
  Stream stream_;
  bool all_;
  std::mt19937 random_{1};
  std::vector<Operands> rows_;
};

std::vector<Case> cases_of(const std::string& which) {
  std::vector<Case> cases;
  if (which == "contiguous")
    for (const auto& [groups, each] : {std::pair{4, 8192}, {8, 4096}})
      for (const auto& [n, k] : {std::pair{6144, 7168}, {7168, 3072}, {4096, 4096}, {4096, 2048}})
        cases.push_back({{.rows = GemmRows::kContiguous, .n = n, .k = k, .groups = groups}, 0, each});
  if (which == "masked")
    for (const auto& [groups, each] : {std::pair{32, 192}, {6, 1024}, {32, 20}, {6, 20}})
      for (const auto& [n, k] : {std::pair{6144, 7168}, {7168, 3072}, {4096, 4096}, {4096, 2048}})
        cases.push_back({{.rows = GemmRows::kMasked, .n = n, .k = k, .groups = groups}, 4096, each});
  if (which == "dense")
    for (const int64_t m : {1, 128, 4096})
      for (const auto& [n, k] :
           {std::pair{2112, 7168}, {576, 7168}, {24576, 1536}, {32768, 512}, {7168, 16384}, {4096, 7168}, {7168, 2048}})
        cases.push_back({{.n = n, .k = k}, m, 0});
  return cases;
}

Status run(int argc, char** argv) {
  std::string rows = "dense";
  int64_t m = 0;
  bool all = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--all") == 0)
      all = true;
    else if (i + 1 < argc && std::strcmp(argv[i], "--rows") == 0)
      rows = argv[++i];
    else if (i + 1 < argc && std::strcmp(argv[i], "--m") == 0)
      m = std::atoll(argv[++i]);
    else
      return invalid(fmt::format("{}: gemm_bench [--rows dense|contiguous|masked] [--m M] [--all]", argv[i]));
  }
  PLAIT_ASSIGN_OR_RETURN(const auto device, Device::open(0));
  PLAIT_ASSIGN_OR_RETURN(const auto compiler, jit::load_nvrtc());
  fmt::print("{}, {} multiprocessors\n", device->properties().name, device->properties().multiprocessors);
  Bench bench(*device, *compiler, all);
  for (const Case& c : cases_of(rows))
    if (m == 0 || c.m == m || c.each == m) PLAIT_RETURN_IF_ERROR(bench.run(c));
  return {};
}

}  // namespace
}  // namespace plait::cuda

int main(int argc, char** argv) {
  const plait::Status status = plait::cuda::run(argc, argv);
  if (!status.has_error()) return 0;
  fmt::print(stderr, "gemm_bench: {}\n", status.error().message);
  return 1;
}
