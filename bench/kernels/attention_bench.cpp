// Attention over a paged cache of latents: time, operations and bytes, and their share of what this machine's float32
// multiply-adds can do, measured in the same run. Caches are many copies, far larger than the processor's, used in
// turn. Times and limits are both the best of several: other programs on the machine make all of them worse.
//
//   attention_bench [--threads N] [--seconds S per row] [--only TEXT] [--cpu-time]
//
// --cpu-time counts the processor time of the calling thread, which other programs disturb less: use it with --threads
// 1.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <time.h>

#include "bench/machine_probe.h"
#include "kernels/attention.h"
#include "kernels/cpu/attention_kernels.h"

namespace plait {
namespace {

using kernels::AttentionSpan;
using kernels::HeadRows;
using kernels::LatentCache;
using kernels::PackedMatrix;

constexpr int64_t kLatent = 512, kRope = 64, kNope = 128, kValue = 128;  // all published models
constexpr int64_t kPageTokens = 16;
constexpr int64_t kFootprintBytes = 200 << 20;  // of the copies of a cache

struct Options {
  int threads = 0;
  double seconds = 0.4;
  std::string only;
  bool cpu_time = false;
};

struct Row {
  bool expanded;
  int64_t heads;
  int64_t sequences;
  int64_t cached;  // tokens of each sequence before the step
  int64_t rows;    // new tokens of each sequence
  DType dtype;
  std::string name() const {
    return fmt::format("{} {} heads, {} x {} rows at {}, {}", expanded ? "expanded" : "absorbed", heads, sequences,
                       rows, cached, dtype == DType::kF32 ? "F32" : "BF16");
  }
};
constexpr Row kRows[] = {
    {false, 16, 1, 8191, 1, DType::kBF16},  {false, 16, 1, 8191, 1, DType::kF32},
    {false, 16, 1, 511, 1, DType::kBF16},   {false, 16, 16, 8191, 1, DType::kBF16},
    {false, 16, 16, 1023, 1, DType::kBF16}, {false, 4, 1, 8191, 1, DType::kBF16},
    {false, 8, 1, 8191, 1, DType::kBF16},   {false, 64, 1, 8191, 1, DType::kBF16},
    {false, 128, 1, 8191, 1, DType::kBF16}, {true, 16, 1, 0, 512, DType::kBF16},
    {true, 16, 1, 8192, 512, DType::kBF16}, {true, 16, 1, 8192, 16, DType::kBF16},
    {true, 128, 1, 512, 512, DType::kBF16},
};

double now_seconds(bool cpu_time) {
  timespec now;
  clock_gettime(cpu_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

std::vector<float> random_values(int64_t count) {
  std::minstd_rand random(1);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(random() % 2048) / 1024 - 1;
  return values;
}

PackedMatrix make_kv_b(int64_t heads) {
  const std::vector<float> values = random_values(heads * (kNope + kValue) * kLatent);
  PackedMatrix matrix(kernels::Implementation::kFast, kernels::WeightFormat::kBF16, heads * (kNope + kValue), kLatent);
  const WeightSource source{DType::kF32, matrix.out_features(), kLatent,
                            reinterpret_cast<const std::byte*>(values.data())};
  if (matrix.pack_rows(0, source).has_error()) std::abort();
  return matrix;
}

// Caches of several layers with the same, scattered page tables.
struct Caches {
  Caches(const Row& row, const kernels::Context& context) {
    const int64_t tokens = row.cached + row.rows, pages_each = (tokens + kPageTokens - 1) / kPageTokens;
    const int64_t row_width = kLatent + kRope;
    std::vector<int32_t> pages(static_cast<size_t>(pages_each * row.sequences));
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), std::mt19937(1));
    for (int64_t s = 0; s < row.sequences; ++s) {
      tables.emplace_back(pages.begin() + s * pages_each, pages.begin() + (s + 1) * pages_each);
      spans.push_back({tables.back(), row.cached, s * row.rows, row.rows});
    }
    const int64_t layer_bytes = std::ssize(pages) * kPageTokens * row_width * size_of(row.dtype);
    const int64_t count = std::max<int64_t>(2, kFootprintBytes / layer_bytes);
    memory = Buffer(static_cast<size_t>(count * layer_bytes));
    const std::vector<float> latents = random_values(tokens * row_width);
    for (int64_t i = 0; i < count; ++i) {
      layers.push_back({memory.as<std::byte>() + i * layer_bytes, row.dtype, kPageTokens, kLatent, kRope});
      for (const auto& table : tables) {
        const AttentionSpan all{table, 0, 0, tokens};
        kernels::store_latents(context, ConstRows(latents.data(), tokens, row_width), {&all, 1}, layers.back());
      }
    }
  }
  std::vector<std::vector<int32_t>> tables;
  std::vector<AttentionSpan> spans;
  std::vector<LatentCache> layers;
  Buffer memory;
};

// Multiply-adds as two operations. In the expanded form: of scores and values only, without the expansion.
double operations(const Row& row) {
  const double width = row.expanded ? kNope + kRope + kValue : kLatent + kRope + kLatent;
  const double pairs = static_cast<double>(row.rows) * (row.cached + (row.rows + 1) / 2.0);  // (query, key)
  return 2 * width * pairs * static_cast<double>(row.heads * row.sequences);
}
double expansion_operations(const Row& row) {
  if (!row.expanded) return 0;
  return 2.0 * kLatent * (kNope + kValue) * static_cast<double>((row.cached + row.rows) * row.heads * row.sequences);
}
double cache_bytes(const Row& row) {
  return static_cast<double>(row.sequences * (row.cached + row.rows) * (kLatent + kRope) * size_of(row.dtype));
}

double float32_peak(MachineProbe& probe) {
  return probe.ceilings(kernels::Activation::kFloat32, /*seconds=*/0.03).flops;
}

void measure(const Row& row, const Options& options, kernels::Context& context, MachineProbe& probe, double& peak) {
  const Caches caches(row, context);
  const PackedMatrix kv_b = row.expanded ? make_kv_b(row.heads) : PackedMatrix();
  const int64_t tokens = row.sequences * row.rows;
  const int64_t q_width = row.expanded ? kNope + kRope : kLatent + kRope, out_width = row.expanded ? kValue : kLatent;
  std::vector<float> q = random_values(tokens * row.heads * q_width);
  std::vector<float> out(static_cast<size_t>(tokens * row.heads * out_width));
  const HeadRows q_rows{q.data(), tokens, row.heads, q_width, row.heads * q_width, q_width};
  const HeadRows out_rows{out.data(), tokens, row.heads, out_width, row.heads * out_width, out_width};

  double best = 1e30;
  size_t layer = 0;
  const double stop = now_seconds(false) + options.seconds;
  for (int i = 0; i < 3 || now_seconds(false) < stop; ++i) {
    const LatentCache& cache = caches.layers[layer++ % caches.layers.size()];
    const double begin = now_seconds(options.cpu_time);
    if (row.expanded)
      kernels::attend_expanded(context, q_rows, cache, kv_b, kNope, caches.spans, 0.1147214f, out_rows);
    else
      kernels::attend_absorbed(context, q_rows, cache, caches.spans, 0.1147214f, out_rows);
    best = std::min(best, now_seconds(options.cpu_time) - begin);
  }
  peak = std::max(peak, float32_peak(probe));
  const double all = operations(row) + expansion_operations(row);
  fmt::print("{:48} {:9.3f} ms  {:7.1f} GFLOP/s  {:5.1f} % of peak  {:6.2f} GB/s\n", row.name(), best * 1e3,
             all / best * 1e-9, 100 * all / best / peak, cache_bytes(row) / best * 1e-9);
  std::fflush(stdout);
}

bool parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view flag = argv[i];
    if (flag == "--cpu-time") {
      options.cpu_time = true;
      continue;
    }
    if (i + 1 == argc) return false;
    const char* value = argv[++i];
    if (flag == "--threads")
      options.threads = std::atoi(value);
    else if (flag == "--seconds")
      options.seconds = std::atof(value);
    else if (flag == "--only")
      options.only = value;
    else
      return false;
  }
  return true;
}

int run(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, options)) {
    fmt::print(stderr, "usage: {} [--threads N] [--seconds S] [--only TEXT] [--cpu-time]\n", argv[0]);
    return 1;
  }
  ThreadPool pool(options.threads);
  kernels::Workspace workspace;
  kernels::Context context{&pool, &workspace};
  MachineProbe probe(pool);
  double peak = float32_peak(probe);
  fmt::print("{} threads, {}, float32 peak {:.1f} GFLOP/s\n", pool.size(), kernels::attention_kernels().name,
             peak * 1e-9);
  for (const Row& row : kRows)
    if (row.name().find(options.only) != std::string::npos) measure(row, options, context, probe, peak);
  fmt::print("float32 peak at the end: {:.1f} GFLOP/s\n", peak * 1e-9);
  return 0;
}

}  // namespace
}  // namespace plait

int main(int argc, char** argv) {
  return plait::run(argc, argv);
}
