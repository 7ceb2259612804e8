// Products on one GPU, at the sizes that DeepGEMM's own tests use: time, TFLOP/s, GB/s of every configuration.
//
//   gemm_bench [--rows dense|contiguous|masked] [--format fp8|bf16] [--m M] [--only PART] [--all]
// Operands are random, in several copies that together exceed the second-level cache and are used in turn; a figure is
// the median of several batches of launches between two events. --all prints every configuration, not only the best;
// --only takes those whose kernel's name has PART in it.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <random>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "base/round.h"
#include "jit/nvrtc.h"
#include "kernels/cuda/gemm_chooser.h"
#include "tensor/dtype.h"

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

struct Operands {
  DeviceBuffer a, b, a_scales, b_scales, d, counts, groups;
  GemmOperands pointers;
};

class Bench {
 public:
  Bench(const Device& device, const DeviceModel& model, jit::Compiler& compiler, bool all, std::string only)
      : device_(device),
        model_(model),
        compiler_(compiler),
        stream_(Stream::create(device).value()),
        all_(all),
        only_(std::move(only)) {}

  // Times every candidate and what the chooser says; prints the best one and how far the chosen one is from it.
  Status run(const Case& c) {
    rows_.clear();
    const int64_t rows = c.shape.rows == GemmRows::kDense        ? c.m
                         : c.shape.rows == GemmRows::kContiguous ? c.each * c.shape.groups
                                                                 : c.each;
    const GemmKernel chosen = choose_gemm(model_, c.shape, rows);
    std::vector<GemmKernel> kernels = candidates(c);
    if (std::ranges::find(kernels, chosen) == kernels.end()) kernels.push_back(chosen);
    std::erase_if(kernels, [&](const GemmKernel& kernel) { return name_of(kernel).find(only_) == std::string::npos; });
    if (kernels.empty()) return {};
    PLAIT_RETURN_IF_ERROR(compile(kernels));
    double best = 1e9, seconds_of_chosen = 0;
    std::string best_name;
    for (const GemmKernel& kernel : kernels) {
      PLAIT_ASSIGN_OR_RETURN(const double seconds, time(c, kernel));
      if (all_) print(c, seconds, name_of(kernel));
      if (kernel == chosen) seconds_of_chosen = seconds;
      if (seconds >= best) continue;
      best = seconds;
      best_name = name_of(kernel);
    }
    print(c, best, fmt::format("{}{}", all_ ? "BEST " : "", best_name));
    if (seconds_of_chosen > 0)
      fmt::print("{:>26}{:.2f} of the best's time, {:.1f} us expected: {}\n", "chosen: ", seconds_of_chosen / best,
                 expected_seconds(model_, chosen, rows) * 1e6, name_of(chosen));
    return {};
  }

 private:
  // Without those that cannot be good: small tiles for many rows, tall ones for few.
  static std::vector<GemmKernel> candidates(const Case& c) {
    std::vector<GemmKernel> kernels;
    const int64_t rows = c.shape.rows == GemmRows::kDense ? c.m : c.each;
    const int least_n = rows > 64 ? 32 : 16, least_m = rows > 512 || c.shape.rows == GemmRows::kContiguous ? 128 : 64;
    for (const int block_m : {64, 128})
      for (const int block_n : {16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 256})
        for (const GemmShare share : {GemmShare::kNothing, GemmShare::kRows, GemmShare::kWeights}) {
          GemmConfig config{.block_m = block_m, .block_n = block_n, .stages = 8, .share = share};
          if (block_n < least_n || block_m < least_m || (rows <= 64 && block_m > 64)) continue;
          // The sum and the products of 64 x 256 do not fit the registers of a warpgroup.
          if (c.shape.format == GemmFormat::kFp8 && block_n == 256) config.waves = 2;
          while (config.stages > 2 && validate(c.shape, config).has_error()) --config.stages;
          if (!validate(c.shape, config).has_error()) kernels.push_back({c.shape, config});
        }
    if (c.shape.rows != GemmRows::kDense || c.m > 256) return kernels;
    for (const int tokens : {8, 16, 32, 64, 128})
      for (const int split : {1, 2, 3, 4, 6, 8})
        for (const int stages : {4, 6, 8}) {
          const NarrowGemmConfig config{.tokens = tokens, .split = split, .stages = stages};
          if (tokens < std::min<int64_t>(c.m, 128) || tokens >= 2 * std::max<int64_t>(c.m, 8)) continue;
          if (!validate(c.shape, config).has_error()) kernels.push_back({c.shape, config});
        }
    return kernels;
  }

  // Rows of each group, about c.each, the same every time.
  std::vector<int32_t> counts_of(const Case& c) const {
    std::mt19937 random(7);
    std::uniform_real_distribution<double> factor(0.7, 1.3);
    std::vector<int32_t> counts(static_cast<size_t>(c.shape.groups));
    for (int32_t& count : counts) count = static_cast<int32_t>(static_cast<double>(c.each) * factor(random));
    return counts;
  }

  enum class Content { kE4m3, kBf16, kScales };

  // Numbers as quantised activations and weights have them: normal, the largest of e4m3 reaching its limit; what is
  // multiplied decides how much power that takes, and with it the clock.
  std::vector<uint8_t> random_bytes(size_t bytes, Content content) {
    constexpr float kE4m3Spread = 150;
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> scale(1, 2);
    std::vector<uint8_t> data(bytes);
    for (size_t i = 0; i < bytes; i += content == Content::kScales ? 4 : content == Content::kBf16 ? 2 : 1) {
      if (content == Content::kE4m3) {
        data[i] = float_to_e4m3(std::clamp(normal(random_) * kE4m3Spread, -448.0F, 448.0F));
      } else if (content == Content::kBf16) {
        const BFloat16 value(normal(random_));
        std::memcpy(data.data() + i, &value, 2);
      } else {
        const float value = scale(random_);
        std::memcpy(data.data() + i, &value, 4);
      }
    }
    return data;
  }

  Result<DeviceBuffer> random_buffer(size_t bytes, Content content) {
    constexpr size_t kDistinctBytes = (8 << 20) - 4096 - 64;  // no multiple of a matrix' row
    PLAIT_ASSIGN_OR_RETURN(DeviceBuffer buffer, DeviceBuffer::allocate(device_, bytes));
    std::vector<uint8_t>& distinct = distinct_[content];
    if (distinct.empty()) distinct = random_bytes(kDistinctBytes, content);
    std::vector<uint8_t> data(bytes);
    for (size_t at = 0; at < bytes; at += kDistinctBytes)
      std::memcpy(data.data() + at, distinct.data(), std::min(kDistinctBytes, bytes - at));
    PLAIT_RETURN_IF_ERROR(buffer.write(data.data(), bytes, stream_));
    PLAIT_RETURN_IF_ERROR(stream_.wait());
    return buffer;
  }

  Result<Operands> make(const Case& c) {
    const GemmShape& shape = c.shape;
    const int64_t element = shape.format == GemmFormat::kFp8 ? 1 : 2, blocks_k = ceil_div(shape.k, 128);
    const Content content = shape.format == GemmFormat::kFp8 ? Content::kE4m3 : Content::kBf16;
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
    PLAIT_ASSIGN_OR_RETURN(o.a, random_buffer(static_cast<size_t>(rows * shape.k * element), content));
    PLAIT_ASSIGN_OR_RETURN(o.b,
                           random_buffer(static_cast<size_t>(shape.groups * shape.n * shape.k * element), content));
    const int64_t scale_rows = ceil_div(m, 4) * 4;
    PLAIT_ASSIGN_OR_RETURN(o.a_scales,
                           random_buffer(static_cast<size_t>(scale_rows * blocks_k * 4 * rows / m), Content::kScales));
    PLAIT_ASSIGN_OR_RETURN(
        o.b_scales,
        random_buffer(static_cast<size_t>(shape.groups * ceil_div(shape.n, 128) * blocks_k * 4), Content::kScales));
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

  // On every core of the host: they are many, and only timing has to be done alone.
  Status compile(const std::vector<GemmKernel>& kernels) {
    std::vector<Status> failures(kernels.size());
    std::vector<std::string> cubins(kernels.size());
    std::atomic<size_t> next = 0;
    const auto work = [&] {
      for (size_t i = next++; i < kernels.size(); i = next++) {
        Result<jit::CompiledKernel> kernel = compiler_.compile(source_of(kernels[i]));
        if (kernel.has_error())
          failures[i] = kernel.error();
        else
          cubins[i] = std::move(kernel).value().cubin;
      }
    };
    {
      std::vector<std::jthread> threads;
      for (unsigned i = 0; i < std::max(std::thread::hardware_concurrency(), 1U); ++i) threads.emplace_back(work);
    }
    cubins_.clear();
    for (size_t i = 0; i < kernels.size(); ++i) {
      PLAIT_RETURN_IF_ERROR(failures[i]);
      cubins_[name_of(kernels[i])] = std::move(cubins[i]);
    }
    return {};
  }

  Result<double> time(const Case& c, const GemmKernel& kernel) {
    const std::string& cubin = cubins_.at(name_of(kernel));
    if (const auto* narrow = std::get_if<NarrowGemmConfig>(&kernel.config)) {
      PLAIT_ASSIGN_OR_RETURN(const NarrowGemm gemm, NarrowGemm::load(device_, c.shape, *narrow, cubin));
      return time(c, gemm);
    }
    PLAIT_ASSIGN_OR_RETURN(const Gemm gemm, Gemm::load(device_, c.shape, std::get<GemmConfig>(kernel.config), cubin));
    return time(c, gemm);
  }

  template <typename Kernel>
  Result<double> time(const Case& c, const Kernel& gemm) {
    if (rows_.empty()) {
      int64_t bytes = 0;
      while (bytes < kRotatedBytes && rows_.size() < 16) {
        PLAIT_ASSIGN_OR_RETURN(Operands o, make(c));
        bytes += static_cast<int64_t>(o.a.size_bytes() + o.b.size_bytes() + o.d.size_bytes());
        rows_.push_back(std::move(o));
      }
    }
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
  const DeviceModel& model_;
  jit::Compiler& compiler_;
  Stream stream_;
  bool all_;
  std::string only_;
  std::mt19937 random_{1};
  std::vector<Operands> rows_;
  std::map<Content, std::vector<uint8_t>> distinct_;
  std::map<std::string, std::string> cubins_;  // by the kernel's name
};

std::vector<Case> cases_of(const std::string& which, int64_t dense_m) {
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
    for (const int64_t m : dense_m > 0 ? std::vector<int64_t>{dense_m} : std::vector<int64_t>{1, 128, 4096})
      for (const auto& [n, k] :
           {std::pair{2112, 7168}, {576, 7168}, {24576, 1536}, {32768, 512}, {7168, 16384}, {4096, 7168}, {7168, 2048}})
        cases.push_back({{.n = n, .k = k}, m, 0});
  return cases;
}

Status run(int argc, char** argv) {
  std::string rows = "dense", only;
  int64_t m = 0;
  bool all = false;
  GemmFormat format = GemmFormat::kFp8;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--all") == 0)
      all = true;
    else if (i + 1 < argc && std::strcmp(argv[i], "--rows") == 0)
      rows = argv[++i];
    else if (i + 1 < argc && std::strcmp(argv[i], "--only") == 0)
      only = argv[++i];
    else if (i + 1 < argc && std::strcmp(argv[i], "--format") == 0)
      format = std::strcmp(argv[++i], "bf16") == 0 ? GemmFormat::kBf16 : GemmFormat::kFp8;
    else if (i + 1 < argc && std::strcmp(argv[i], "--m") == 0)
      m = std::atoll(argv[++i]);
    else
      return invalid(fmt::format(
          "{}: gemm_bench [--rows dense|contiguous|masked] [--format fp8|bf16] [--m M] [--only PART] [--all]",
          argv[i]));
  }
  PLAIT_ASSIGN_OR_RETURN(const auto device, Device::open(0));
  PLAIT_ASSIGN_OR_RETURN(const auto compiler, jit::load_nvrtc());
  fmt::print("{}, {} multiprocessors\n", device->properties().name, device->properties().multiprocessors);
  PLAIT_ASSIGN_OR_RETURN(const DeviceModel model, find_device("h200"));
  Bench bench(*device, model, *compiler, all, only);
  for (Case& c : cases_of(rows, m)) {
    c.shape.format = format;
    if (m == 0 || c.m == m || c.each == m) PLAIT_RETURN_IF_ERROR(bench.run(c));
  }
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
