// Products with weight matrices of DeepSeek-V2-Lite's shapes: time, bytes and operations, and their shares of what this
// machine can do, measured in the same run. Weights are many copies, far larger than the caches, used in turn. Times
// and limits are both the best of several: other programs on the machine make all of them worse.
//
//   linear_bench [--threads N] [--seconds S per row] [--only TEXT] [--target NAME] [--float32] [--cpu-time]
//
// --cpu-time counts the processor time of the calling thread, which other programs disturb less: use it with
// --threads 1 and OMP_NUM_THREADS=1.
#include <chrono>
#include <cstdio>
#include <memory>
#include <random>

#include <fmt/format.h>
#include <time.h>

#include "bench/kernels/onednn_matmul.h"
#include "bench/machine_probe.h"
#include "kernels/cpu/linear_kernels.h"
#include "kernels/linear.h"

namespace plait {
namespace {

using kernels::Activation;
using kernels::PackedMatrix;
using kernels::WeightFormat;
using Clock = std::chrono::steady_clock;

constexpr int64_t kFootprintBytes = 300 << 20;  // of the copies of one dense shape

struct Options {
  int threads = 0;
  double seconds = 0.25;
  std::string only;
  std::string target;
  Activation activation = Activation::kBFloat16;
  bool cpu_time = false;
};

double now_seconds(bool cpu_time) {
  timespec now;
  clock_gettime(cpu_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Shape {
  const char* name;
  int64_t out, in;
  int experts;  // 1: dense
};
constexpr Shape kShapes[] = {
    {"q_proj", 3072, 2048, 1},         {"kv_a_proj", 576, 2048, 1},        {"o_proj", 2048, 2048, 1},
    {"shared_gate_up", 5632, 2048, 1}, {"expert_gate_up", 2816, 2048, 64}, {"expert_down", 2048, 1408, 64},
    {"lm_head", 102400, 2048, 1},
};
constexpr int64_t kRows[] = {1, 2, 4, 8, 16, 48, 512};

const char* name_of(WeightFormat format) {
  return format == WeightFormat::kF32 ? "F32" : format == WeightFormat::kBF16 ? "BF16" : "FP8";
}

// Copies of one random matrix; where a weight lies is what matters here, not its value.
std::vector<PackedMatrix> random_matrices(WeightFormat format, int64_t out, int64_t in, int fewest) {
  std::mt19937_64 random(1);
  const DType dtype = format == WeightFormat::kF8Block ? DType::kF8E4M3 : DType::kBF16;
  std::vector<uint64_t> data(static_cast<size_t>(out * in * size_of(dtype) / 8 + 1));
  // Any bytes without NaN and infinity: e4m3 below 0x40, bfloat16 between 2^-16 and 2.
  for (uint64_t& word : data)
    word =
        dtype == DType::kF8E4M3 ? random() & 0xbfbfbfbfbfbfbfbf : (random() & 0x87ff87ff87ff87ff) | 0x3800380038003800;
  const std::vector<float> scales(static_cast<size_t>((out + 127) / 128 * ((in + 127) / 128)), 0.01f);
  WeightSource source{dtype, out, in, reinterpret_cast<const std::byte*>(data.data()), nullptr, 0};
  if (dtype == DType::kF8E4M3) {
    source.scales = reinterpret_cast<const std::byte*>(scales.data());
    source.block = 128;
  }
  std::vector<PackedMatrix> matrices;
  for (int64_t bytes = 0; static_cast<int>(matrices.size()) < fewest || bytes < kFootprintBytes;) {
    matrices.emplace_back(kernels::Implementation::kFast, format, out, in);
    if (matrices.back().pack_rows(0, source).has_error()) std::abort();
    bytes += static_cast<int64_t>(matrices.back().size_bytes());
  }
  return matrices;
}

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options), pool_(options.threads) {
    context_ = {&pool_, &workspace_, kernels::Implementation::kFast, options.activation};
    std::printf("%d threads, targets:", pool_.size());
    for (const auto target : kernels::linear_targets()) std::printf(" %.*s", int(target.size()), target.data());
    std::printf("\nread bandwidth %.1f GB/s, float32 peak %.1f GFLOP/s (%s), bfloat16 peak %.1f GFLOP/s (%s)\n\n",
                bandwidth_ / 1e9, machine_.f32_flops / 1e9, machine_.f32_instruction.c_str(), machine_.bf16_flops / 1e9,
                machine_.bf16_instruction.c_str());
    std::printf("%-16s %-6s %5s %10s %8s %6s %9s %6s %9s\n", "shape", "format", "rows", "us", "GB/s", "share",
                "GFLOP/s", "share", "oneDNN us");
  }

  void run(const Shape& shape, WeightFormat format) {
    const std::vector<PackedMatrix> weights = random_matrices(format, shape.out, shape.in, shape.experts);
    for (const int64_t rows : kRows) {
      if (rows * shape.out > int64_t{16} << 20) continue;  // nobody asks for so many logits
      if (shape.experts > 1)
        grouped(shape, weights, rows);
      else
        dense(shape, weights, rows);
    }
  }

 private:
  template <typename Body>
  double best_seconds(const Body& body) {
    double best = 1e9;
    const auto start = Clock::now();
    do {
      const double begin = now_seconds(options_.cpu_time);
      body();
      best = std::min(best, now_seconds(options_.cpu_time) - begin);
    } while (std::chrono::duration<double>(Clock::now() - start).count() < options_.seconds);
    return best;
  }

  void dense(const Shape& shape, const std::vector<PackedMatrix>& weights, int64_t rows) {
    std::vector<float> x(static_cast<size_t>(rows * shape.in), 0.5f), y(static_cast<size_t>(rows * shape.out));
    size_t copy = 0;
    const double seconds = best_seconds([&] {
      kernels::linear(context_, {x.data(), rows, shape.in}, weights[copy], {y.data(), rows, shape.out});
      copy = (copy + 1) % weights.size();
    });
    const double bytes = static_cast<double>(weights.front().size_bytes());
    const double peer = onednn_seconds(shape, weights.front().format(), rows, static_cast<int>(weights.size()));
    report(shape.name, weights.front().format(), rows, seconds, bytes, 2.0 * rows * shape.out * shape.in, peer);
  }

  // `rows` tokens, each with 6 experts of 64: a sixteenth of the pairs goes to each expert, at random.
  void grouped(const Shape& shape, const std::vector<PackedMatrix>& weights, int64_t tokens) {
    std::mt19937_64 random(7);
    std::vector<int64_t> counts(weights.size());
    for (int64_t pair = 0; pair < tokens * 6; ++pair) ++counts[random() % counts.size()];
    const int64_t rows = tokens * 6;
    double bytes = 0;
    int64_t row = 0;
    std::vector<std::vector<kernels::RowGroup>> layers(2);  // so that a layer finds nothing of its own in the caches
    for (size_t e = 0; e < weights.size(); ++e) {
      if (counts[e] == 0) continue;
      for (size_t layer = 0; layer < layers.size(); ++layer)
        layers[layer].push_back({&weights[(e + layer * weights.size() / 2) % weights.size()], row, counts[e]});
      row += counts[e];
      bytes += static_cast<double>(weights[e].size_bytes());
    }
    std::vector<float> x(static_cast<size_t>(rows * shape.in), 0.5f), y(static_cast<size_t>(rows * shape.out));
    size_t layer = 0;
    const double seconds = best_seconds([&] {
      kernels::grouped_linear(context_, {x.data(), rows, shape.in}, layers[layer], {y.data(), rows, shape.out});
      layer = 1 - layer;
    });
    report(shape.name, weights.front().format(), tokens, seconds, bytes, 2.0 * rows * shape.out * shape.in, 0);
  }

  double onednn_seconds(const Shape& shape, WeightFormat format, int64_t rows, int copies) {
#if defined(PLAIT_BENCH_ONEDNN)
    // It has no block-scaled e4m3, and bfloat16 without instructions for it is emulated.
    if (format == WeightFormat::kF8Block || rows < 16 || shape.out > 10000) return 0;
    bench::OneDnnMatmul matmul(rows, shape.out, shape.in, format == WeightFormat::kBF16, copies);
    int copy = 0;
    return best_seconds([&] { matmul.run(copy = (copy + 1) % copies); });
#else
    (void)shape, (void)format, (void)rows, (void)copies;
    return 0;
#endif
  }

  void report(const char* name, WeightFormat format, int64_t rows, double seconds, double bytes, double operations,
              double peer) {
    bandwidth_ = std::max(bandwidth_, probe_.ceilings(options_.activation, /*seconds=*/0.03).read_bandwidth);
    const bool pairs = format != WeightFormat::kF32 && options_.activation == Activation::kBFloat16;
    const double peak = pairs ? machine_.bf16_flops : machine_.f32_flops;
    std::printf("%-16s %-6s %5lld %10.1f %8.2f %5.0f%% %9.1f %5.0f%%", name, name_of(format),
                static_cast<long long>(rows), seconds * 1e6, bytes / seconds / 1e9, 100 * bytes / seconds / bandwidth_,
                operations / seconds / 1e9, 100 * operations / seconds / peak);
    if (peer > 0) std::printf(" %9.1f  x%.2f", peer * 1e6, peer / seconds);
    std::printf("\n");
    std::fflush(stdout);
  }

  Options options_;
  ThreadPool pool_;
  kernels::Workspace workspace_;
  kernels::Context context_;
  MachineProbe probe_{pool_};
  const MachineProfile machine_ = probe_.profile(/*seconds=*/0.5);
  double bandwidth_ = machine_.read_bandwidth;  // the best so far
};

int run(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string_view flag = argv[i];
    if (flag == "--float32") {
      options.activation = Activation::kFloat32;
    } else if (flag == "--cpu-time") {
      options.cpu_time = true;
    } else if (i + 1 == argc) {
      std::fprintf(stderr, "%s needs a value\n", argv[i]);
      return 2;
    } else if (flag == "--threads") {
      options.threads = std::atoi(argv[++i]);
    } else if (flag == "--seconds") {
      options.seconds = std::atof(argv[++i]);
    } else if (flag == "--only") {
      options.only = argv[++i];
    } else if (flag == "--target") {
      options.target = argv[++i];
    }
  }
  if (!kernels::select_linear_target(options.target)) {
    std::fprintf(stderr, "this machine cannot run %s\n", options.target.c_str());
    return 2;
  }
  Bench bench(options);
  for (const Shape& shape : kShapes)
    for (const WeightFormat format : {WeightFormat::kBF16, WeightFormat::kF8Block, WeightFormat::kF32}) {
      const std::string name = fmt::format("{} {}", shape.name, name_of(format));
      if (format == WeightFormat::kF32 && shape.experts * shape.out > 10000) continue;
      if (name.find(options.only) != std::string::npos) bench.run(shape, format);
    }
  return 0;
}

}  // namespace
}  // namespace plait

int main(int argc, char** argv) {
  return plait::run(argc, argv);
}
