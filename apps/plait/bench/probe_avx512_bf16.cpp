// A file of its own because Highway 1.0 has no target with this instruction; the attribute compiles it, the check
// before it runs it.
#include "bench/probe_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace plait {
namespace {

constexpr int kChains = 12;  // two units, latency up to 6
constexpr int kFlopsPerInstruction = 64;

__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) float dot_products(int64_t rounds) {
  const __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3f80));
  __m512 chain[kChains];
#pragma GCC unroll 12
  for (int c = 0; c < kChains; ++c) chain[c] = _mm512_set1_ps(static_cast<float>(c));  // of equal ones: one
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) chain[c] = _mm512_dpbf16_ps(chain[c], x, x);
  }
  __m512 sum = chain[0];
  for (int c = 1; c < kChains; ++c) sum = _mm512_add_ps(sum, chain[c]);
  alignas(64) float lanes[16];
  _mm512_store_ps(lanes, sum);
  return lanes[0];
}

}  // namespace

bool has_bf16_dot_product() {
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw");
}

double bf16_dot_products(int64_t rounds) {
  volatile float keep = dot_products(rounds);
  static_cast<void>(keep);
  return static_cast<double>(rounds) * kChains * kFlopsPerInstruction;
}

}  // namespace plait

#else

namespace plait {

bool has_bf16_dot_product() {
  return false;
}

double bf16_dot_products(int64_t) {
  return 0;
}

}  // namespace plait
#endif
