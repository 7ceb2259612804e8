#include "bench/machine_probe.h"

#include <fstream>
#include <set>

#include <unistd.h>

#include "bench/probe_kernels.h"

namespace plait {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

std::string first_line(const std::filesystem::path& file) {
  std::ifstream stream(file);
  std::string line;
  std::getline(stream, line);
  return line;
}

std::string cpu_name() {
  std::ifstream stream("/proc/cpuinfo");
  for (std::string line; std::getline(stream, line);) {
    if (!line.starts_with("model name")) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown CPU";
}

// "36608K" or "32M"
size_t parse_cache_size(const std::string& text) {
  char* unit = nullptr;
  const size_t number = std::strtoull(text.c_str(), &unit, 10);
  switch (*unit) {
    case 'K':
      return number << 10;
    case 'M':
      return number << 20;
    case 'G':
      return number << 30;
    default:
      return number;
  }
}

size_t last_level_cache_bytes() {
  std::set<std::string> seen;  // the CPUs that share a cache name it
  size_t total = 0;
  const long cpus = sysconf(_SC_NPROCESSORS_CONF);
  for (long cpu = 0; cpu < cpus; ++cpu) {
    const std::filesystem::path cache = fmt::format("/sys/devices/system/cpu/cpu{}/cache/index3", cpu);
    const std::string sharers = first_line(cache / "shared_cpu_list");
    if (!sharers.empty() && seen.insert(sharers).second) total += parse_cache_size(first_line(cache / "size"));
  }
  return total;
}

// Far larger than the caches, but no more than a quarter of what is free.
size_t probe_bytes(size_t cache_bytes) {
  const size_t wanted = std::max(size_t{512} << 20, 8 * cache_bytes);
  const auto free = static_cast<size_t>(sysconf(_SC_AVPHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t bytes = std::clamp(free / 4, size_t{64} << 20, wanted);
  return bytes / (size_t{2} << 20) * (size_t{2} << 20);
}

constexpr int64_t kChunkBytes = int64_t{1} << 20;

}  // namespace

MachineProbe::MachineProbe(ThreadPool& pool)
    : pool_(pool), cache_bytes_(last_level_cache_bytes()), memory_(probe_bytes(cache_bytes_)) {
  // Untouched pages would all be the one zero page, which fits every cache.
  pool.parallel_for(static_cast<int64_t>(memory_.size_bytes()) / kChunkBytes, 1, [&](int64_t begin, int64_t end, int) {
    std::memset(memory_.as<std::byte>() + begin * kChunkBytes, 1, static_cast<size_t>((end - begin) * kChunkBytes));
  });
}

double MachineProbe::read_bandwidth(double seconds) {
  const auto* bytes = memory_.as<std::byte>();
  const auto chunks = static_cast<int64_t>(memory_.size_bytes()) / kChunkBytes;
  std::atomic<uint64_t> keep{0};
  double best = 0;
  const auto start = Clock::now();
  for (int pass = 0; pass < 3 || seconds_since(start) < seconds; ++pass) {
    const auto begin = Clock::now();
    pool_.parallel_for(chunks, 1, [&](int64_t first, int64_t last, int) {
      keep ^= read_all(bytes + first * kChunkBytes, static_cast<size_t>((last - first) * kChunkBytes));
    });
    best = std::max(best, static_cast<double>(memory_.size_bytes()) / seconds_since(begin));
  }
  return best;
}

// `kernel(rounds)` returns the operations it did.
double MachineProbe::flops(double (*kernel)(int64_t), double seconds) {
  // Pieces of about a millisecond, several per thread, so that a late thread costs little.
  constexpr int64_t kRounds = 200000;
  constexpr int64_t kPiecesPerThread = 8;
  std::vector<double> operations(static_cast<size_t>(pool_.size()));
  double best = 0;
  const auto start = Clock::now();
  for (int pass = 0; pass < 3 || seconds_since(start) < seconds; ++pass) {
    std::fill(operations.begin(), operations.end(), 0.0);
    const auto begin = Clock::now();
    pool_.parallel_for(pool_.size() * kPiecesPerThread, 1, [&](int64_t first, int64_t last, int member) {
      for (int64_t i = first; i < last; ++i) operations[static_cast<size_t>(member)] += kernel(kRounds);
    });
    const double elapsed = seconds_since(begin);
    double total = 0;
    for (const double count : operations) total += count;
    best = std::max(best, total / elapsed);
  }
  return best;
}

MachineProfile MachineProbe::profile(double seconds) {
  MachineProfile profile;
  profile.cpu = cpu_name();
  profile.threads = pool_.size();
  profile.last_level_cache_bytes = cache_bytes_;
  profile.read_bandwidth = read_bandwidth(seconds);
  profile.f32_flops = flops(f32_multiply_adds, seconds);
  profile.f32_instruction = fmt::format("fused multiply-add, {}", f32_instruction());
  profile.bf16_flops = profile.f32_flops;
  profile.bf16_instruction = "float32 multiply-add: no bfloat16 instruction here";
  if (has_bf16_dot_product()) {
    const double pairs = flops(bf16_dot_products, seconds);
    use_bf16_dot_product_ = pairs > profile.f32_flops;
    if (use_bf16_dot_product_) {
      profile.bf16_flops = pairs;
      profile.bf16_instruction = "VDPBF16PS, AVX512_BF16";
    } else {
      profile.bf16_instruction =
          fmt::format("float32 multiply-add: VDPBF16PS reaches {:.1f} GFLOP/s here", pairs / 1e9);
    }
  }
  return profile;
}

Ceilings MachineProbe::ceilings(kernels::Activation activation, double seconds) {
  const bool pairs = use_bf16_dot_product_ && activation == kernels::Activation::kBFloat16;
  return {.read_bandwidth = read_bandwidth(seconds),
          .flops = flops(pairs ? bf16_dot_products : f32_multiply_adds, seconds)};
}

}  // namespace plait
