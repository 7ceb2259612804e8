#include "bench/kernels/machine_limits.h"

#include <chrono>
#include <cstring>
#include <sys/mman.h>

#include <immintrin.h>

namespace plait::bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// The result keeps the compiler from leaving the reads out.
uint64_t read_all(const std::byte* data, size_t bytes) {
  __m128i sums[8] = {};
  for (size_t i = 0; i < bytes; i += sizeof(sums)) {
    const auto* from = reinterpret_cast<const __m128i*>(data + i);
    for (int j = 0; j < 8; ++j) sums[j] = _mm_xor_si128(sums[j], _mm_load_si128(from + j));
    // Hardware prefetchers stop at 4 KiB pages.
    _mm_prefetch(reinterpret_cast<const char*>(from) + 2048, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(from) + 2112, _MM_HINT_T0);
  }
  for (int j = 1; j < 8; ++j) sums[0] = _mm_xor_si128(sums[0], sums[j]);
  return static_cast<uint64_t>(_mm_cvtsi128_si64(sums[0]));
}

constexpr int64_t kRounds = 1'000'000;
constexpr int kChains = 12;  // more than latency times throughput

__attribute__((target("avx512f"))) float run_avx512(int64_t rounds) {
  __m512 sums[kChains];
  for (auto& sum : sums) sum = _mm512_set1_ps(1.0f);
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(1e-3f);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) sums[j] = _mm512_fmadd_ps(sums[j], a, b);
  }
  alignas(64) float lanes[16];
  for (int j = 1; j < kChains; ++j) sums[0] = _mm512_add_ps(sums[0], sums[j]);
  _mm512_store_ps(lanes, sums[0]);
  return lanes[0];
}

__attribute__((target("avx2,fma"))) float run_avx2(int64_t rounds) {
  __m256 sums[kChains];
  for (auto& sum : sums) sum = _mm256_set1_ps(1.0f);
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(1e-3f);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) sums[j] = _mm256_fmadd_ps(sums[j], a, b);
  }
  alignas(32) float lanes[8];
  for (int j = 1; j < kChains; ++j) sums[0] = _mm256_add_ps(sums[0], sums[j]);
  _mm256_store_ps(lanes, sums[0]);
  return lanes[0];
}

__attribute__((target("avx512f,avx512bf16"))) float run_bf16(int64_t rounds) {
  __m512 sums[kChains];
  for (auto& sum : sums) sum = _mm512_set1_ps(1.0f);
  const __m512i a = _mm512_set1_epi16(0x3c00), b = _mm512_set1_epi16(0x3c01);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) sums[j] = _mm512_dpbf16_ps(sums[j], (__m512bh)a, (__m512bh)b);
  }
  alignas(64) float lanes[16];
  for (int j = 1; j < kChains; ++j) sums[0] = _mm512_add_ps(sums[0], sums[j]);
  _mm512_store_ps(lanes, sums[0]);
  return lanes[0];
}

volatile float float_sink;
volatile uint64_t word_sink;

// `operations` per round and chain.
double peak(ThreadPool& pool, float (*run)(int64_t), double operations) {
  double best = 0;
  for (int attempt = 0; attempt < 6; ++attempt) {
    const auto begin = Clock::now();
    pool.parallel_for(pool.size(), 1, [&](int64_t, int64_t, int) { float_sink = run(kRounds); });
    best = std::max(best, pool.size() * operations * kRounds * kChains / seconds_since(begin));
  }
  return best;
}

}  // namespace

ReadBandwidth::ReadBandwidth(ThreadPool& pool, size_t total_bytes, size_t piece_bytes)
    : pool_(pool), total_bytes_(total_bytes), piece_bytes_(piece_bytes) {
  void* data = mmap(nullptr, total_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) std::abort();
  madvise(data, total_bytes, MADV_HUGEPAGE);
  std::memset(data, 1, total_bytes);
  data_ = static_cast<std::byte*>(data);
}

ReadBandwidth::~ReadBandwidth() {
  munmap(data_, total_bytes_);
}

double ReadBandwidth::measure(double seconds) {
  const auto start = Clock::now();
  while (seconds_since(start) < seconds) {
    const std::byte* piece = data_ + next_;
    next_ = (next_ + piece_bytes_) % (total_bytes_ / piece_bytes_ * piece_bytes_);
    constexpr int64_t kGrain = 256 << 10;
    const auto begin = Clock::now();
    pool_.parallel_for(static_cast<int64_t>(piece_bytes_), kGrain, [&](int64_t from, int64_t to, int) {
      word_sink = read_all(piece + from, static_cast<size_t>(to - from));
    });
    best_ = std::max(best_, static_cast<double>(piece_bytes_) / seconds_since(begin));
  }
  return best_;
}

double float32_peak(ThreadPool& pool) {
  if (__builtin_cpu_supports("avx512f")) return peak(pool, run_avx512, 32);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return peak(pool, run_avx2, 16);
  return 0;
}

double bfloat16_peak(ThreadPool& pool) {
  return __builtin_cpu_supports("avx512bf16") ? peak(pool, run_bf16, 64) : 0;
}

}  // namespace plait::bench
