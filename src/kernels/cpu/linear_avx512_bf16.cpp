// The kernels for vdpbf16ps, which multiplies pairs of bfloat16 and adds both products to a float32: Cooper Lake,
// Sapphire Rapids, Zen 4 and later. Panels of kBF16 are its operands as they lie; e4m3 is looked up with the byte
// permutes of AVX512_VBMI.
#include "kernels/cpu/linear_kernels.h"

#if defined(__x86_64__)

#include <utility>

#include <hwy/base.h>
#include <immintrin.h>

// GCC 12's own header of _mm512_undefined_* and friends trips over this.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

HWY_PUSH_ATTRIBUTES("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16")
namespace plait::kernels {
namespace {

// For lambdas. One call that is not inlined, and a kernel's sums live in memory instead of registers.
#define INLINED __attribute__((always_inline))

// body(0), ..., body(N - 1). Inlining makes the indices constants, and so arrays of vectors registers. They are plain
// integers, because a body for every index would multiply the time of compilation.
template <typename Indices>
struct UnrollOver;
template <int... I>
struct UnrollOver<std::integer_sequence<int, I...>> {
  template <typename Body>
  static HWY_INLINE void run(const Body& body) {
    (body(I), ...);
  }
};
template <int N>
using Unroll = UnrollOver<std::make_integer_sequence<int, N>>;

// Bytes of bfloat16 for the magnitudes of e4m3, times 2^-8 (panels.h).
struct F8Table {
  alignas(64) uint8_t low[128];
  alignas(64) uint8_t high[128];
};
constexpr F8Table make_f8_table() {
  F8Table table{};
  for (int code = 0; code < 128; ++code) {
    int exponent = code >> 3, mantissa = code & 7;
    if (exponent == 0 && mantissa != 0) {  // subnormal: shift the first one out of the mantissa
      exponent = 1;
      for (; mantissa < 8; mantissa *= 2) --exponent;
      mantissa &= 7;
    }
    // Exponent e means 2^(e - 7); bfloat16's bias is 127, and 2^-8 goes into it.
    const int bits = code == 0 ? 0 : (exponent - 7 - 8 + 127) << 7 | mantissa << 4;
    table.low[code] = static_cast<uint8_t>(bits & 0xff);
    table.high[code] = static_cast<uint8_t>(bits >> 8);
  }
  return table;
}
constexpr F8Table kF8Table = make_f8_table();

// 64 bytes of a kF8Block panel, two pairs of inputs for 16 outputs, as two vectors of bfloat16 pairs.
class F8Decoder {
 public:
  HWY_INLINE F8Decoder()
      : order_(_mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0)),
        sign_(_mm512_set1_epi8(static_cast<char>(0x80))),
        low0_(_mm512_load_si512(kF8Table.low)),
        low1_(_mm512_load_si512(kF8Table.low + 64)),
        high0_(_mm512_load_si512(kF8Table.high)),
        high1_(_mm512_load_si512(kF8Table.high + 64)) {}

  HWY_INLINE void operator()(const std::byte* from, __m512i& first, __m512i& second) const {
    // Each half holds one pair; unpacking wants a quarter of both in every 128 bits.
    const __m512i bytes = _mm512_permutexvar_epi64(order_, _mm512_load_si512(from));
    const __m512i low = _mm512_permutex2var_epi8(low0_, bytes, low1_);
    const __m512i magnitude = _mm512_permutex2var_epi8(high0_, bytes, high1_);
    const __m512i high = _mm512_ternarylogic_epi64(magnitude, bytes, sign_, 0xf8);  // magnitude | (bytes & sign)
    first = _mm512_unpacklo_epi8(low, high);
    second = _mm512_unpackhi_epi8(low, high);
  }

 private:
  __m512i order_, sign_, low0_, low1_, high0_, high1_;
};

template <int Rows, int Panels>
struct Tile {
  __m512 sum[Rows][Panels];

  template <typename Body>
  HWY_INLINE void for_each(const Body& body) {
    Unroll<Rows>::run([&](int m) INLINED { Unroll<Panels>::run([&](int n) INLINED { body(m, n, sum[m][n]); }); });
  }
  HWY_INLINE void clear() {
    for_each([](int, int, __m512& part) INLINED { part = _mm512_setzero_ps(); });
  }
  // x: this pair of inputs of row 0; rows are 16 words apart.
  HWY_INLINE void multiply_add(const uint32_t* HWY_RESTRICT x, const __m512i (&weights)[Panels]) {
    Unroll<Rows>::run([&](int m) INLINED {
      const __m512i value = _mm512_set1_epi32(static_cast<int>(x[m * 16]));
      Unroll<Panels>::run(
          [&](int n) INLINED { sum[m][n] = _mm512_dpbf16_ps(sum[m][n], (__m512bh)value, (__m512bh)weights[n]); });
    });
  }
};

constexpr int64_t kPrefetchBytes = 2048;

// How to read kPairs successive pairs of inputs of a panel.
struct PairWeights {
  static constexpr bool kScaled = false;
  static constexpr int kPairs = 1;
  HWY_INLINE PairWeights() {}
  HWY_INLINE void load(const std::byte* from, __m512i (&pairs)[kPairs]) const { pairs[0] = _mm512_load_si512(from); }
};

struct DecodedF8 : PairWeights {
  static constexpr bool kScaled = true;
  HWY_INLINE DecodedF8() {}
};

struct F8Weights {
  static constexpr bool kScaled = true;
  static constexpr int kPairs = 2;
  F8Decoder decode;
  HWY_INLINE F8Weights() {}
  HWY_INLINE void load(const std::byte* from, __m512i (&pairs)[kPairs]) const { decode(from, pairs[0], pairs[1]); }
};

template <typename Weights, int Rows, int Panels>
HWY_INLINE void multiply_stretch(const Weights& reader, Tile<Rows, Panels>& tile, const uint32_t*& x,
                                 const std::byte*& weights, int64_t panel_bytes, int64_t inputs) {
  constexpr int kPairs = Weights::kPairs;
  for (int64_t k = 0; k < inputs; k += 32) {
    for (int step = 0; step < 16 / kPairs; ++step) {
      __m512i loaded[kPairs][Panels];
      Unroll<Panels>::run([&](int n) INLINED {
        __m512i pairs[kPairs];
        const std::byte* from = weights + n * panel_bytes;
        _mm_prefetch(reinterpret_cast<const char*>(from) + kPrefetchBytes, _MM_HINT_T0);
        reader.load(from, pairs);
        Unroll<kPairs>::run([&](int i) INLINED { loaded[i][n] = pairs[i]; });
      });
      Unroll<kPairs>::run([&](int i) INLINED { tile.multiply_add(x + i, loaded[i]); });
      x += kPairs;
      weights += 64;
    }
    x += (Rows - 1) * 16;
  }
}

template <int Panels>
struct Masks {
  __mmask16 panel[Panels];
  HWY_INLINE explicit Masks(int64_t outputs) {
    for (int n = 0; n < Panels; ++n) {
      const int64_t left = outputs - n * 16;
      panel[n] = static_cast<__mmask16>(left >= 16 ? 0xffff : left <= 0 ? 0 : (1 << left) - 1);
    }
  }
};

template <typename Weights, int Rows, int Panels>
void panel_kernel(const PanelCall& call) {
  const uint32_t* x = call.x;
  const std::byte* weights = call.weights;
  const Weights reader;
  const Masks<Panels> masks(call.outputs);
  Tile<Rows, Panels> tile;
  tile.clear();
  if (call.accumulate)
    tile.for_each([&](int m, int n, __m512& part)
                      INLINED { part = _mm512_maskz_loadu_ps(masks.panel[n], call.y + m * call.y_stride + n * 16); });
  if constexpr (Weights::kScaled) {
    alignas(64) float sums[Rows][Panels][16];
    tile.for_each([&](int m, int n, __m512& part) INLINED { _mm512_store_ps(sums[m][n], part); });
    for (int64_t begin = 0; begin < call.inputs; begin += 128) {
      tile.clear();
      multiply_stretch(reader, tile, x, weights, call.panel_bytes,
                       call.inputs - begin < 128 ? call.inputs - begin : 128);
      tile.for_each([&](int m, int n, __m512& part) INLINED {
        const __m512 scale = _mm512_load_ps(weights + n * call.panel_bytes);
        part = _mm512_fmadd_ps(part, scale, _mm512_load_ps(sums[m][n]));
        _mm512_store_ps(sums[m][n], part);
      });
      weights += 16 * sizeof(float);
    }
  } else {
    multiply_stretch(reader, tile, x, weights, call.panel_bytes, call.inputs);
  }
  tile.for_each([&](int m, int n, __m512& part)
                    INLINED { _mm512_mask_storeu_ps(call.y + m * call.y_stride + n * 16, masks.panel[n], part); });
}

void decode_f8(const std::byte* panel, int64_t inputs, std::byte* out) {
  const F8Decoder decode;
  for (int64_t begin = 0; begin < inputs; begin += 128) {
    const int64_t end = inputs < begin + 128 ? inputs : begin + 128;
    for (int64_t k = begin; k < end; k += 4, panel += 64, out += 128) {
      __m512i first, second;
      _mm_prefetch(reinterpret_cast<const char*>(panel) + kPrefetchBytes, _MM_HINT_T0);
      decode(panel, first, second);
      _mm512_store_si512(out, first);
      _mm512_store_si512(out + 64, second);
    }
    _mm512_store_si512(out, _mm512_load_si512(panel));  // the scales
    panel += 64;
    out += 64;
  }
}

void pack_row(const float* x, int64_t inputs, int64_t padded_in, Activation, int64_t tile_rows, uint32_t* out) {
  for (int64_t k = 0; k < padded_in; k += 32, out += tile_rows * 16) {
    const int64_t left = inputs - k;
    const auto mask = static_cast<__mmask32>(left >= 32 ? 0xffffffff : left <= 0 ? 0 : (uint32_t{1} << left) - 1);
    const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), x + k);
    const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), x + k + 16);
    _mm512_store_si512(out, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
}

// Sums, the weights of one step, one or two registers for x; e4m3 keeps five tables and masks and needs some to work.
constexpr int kMaxSingleRows = kFewSizes ? 3 : 22;
constexpr int kMaxPairTileRows = kFewSizes ? 2 : 14;
constexpr int pair_panels(int rows) {
  return rows <= 6 ? 4 : rows <= kMaxPairTileRows ? 2 : 1;
}
constexpr int f8_panels(int rows) {
  return rows <= 3 ? 4 : rows <= 8 ? 2 : 1;
}

template <typename Weights, int Rows, int Panels>
LinearKernels::Sizes sizes() {
  return {Panels, panel_kernel<Weights, Rows, Panels>, panel_kernel<Weights, Rows, 1>};
}

template <int Rows>
void add_rows(LinearKernels& table) {
  table.kernels[static_cast<int>(WeightFormat::kBF16)][Rows] = sizes<PairWeights, Rows, pair_panels(Rows)>();
  table.kernels[static_cast<int>(WeightFormat::kF8Block)][Rows] = sizes<F8Weights, Rows, f8_panels(Rows)>();
  if constexpr (Rows <= kMaxPairTileRows) table.kernels[kDecodedF8][Rows] = sizes<DecodedF8, Rows, pair_panels(Rows)>();
}

template <int... I>
void add_all_rows(LinearKernels& table, std::integer_sequence<int, I...>) {
  (add_rows<I + 1>(table), ...);
}

LinearKernels make_table() {
  LinearKernels table{};
  table.name = "AVX512_BF16";
  table.inputs_per_word = 2;
  table.max_single_rows = kMaxSingleRows;
  table.max_tile_rows = kMaxPairTileRows;
  add_all_rows(table, std::make_integer_sequence<int, kMaxSingleRows>());
  table.decode = decode_f8;
  table.decoded_bytes = 2;
  table.pack_row = pack_row;
  return table;
}

}  // namespace
}  // namespace plait::kernels
HWY_POP_ATTRIBUTES

namespace plait::kernels {

const LinearKernels* avx512_bf16_linear_kernels() {
  static const bool kSupported = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                                 __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bf16");
  if (!kSupported) return nullptr;
  static const LinearKernels kTable = make_table();
  return &kTable;
}

}  // namespace plait::kernels

#else

namespace plait::kernels {
const LinearKernels* avx512_bf16_linear_kernels() {
  return nullptr;
}
}  // namespace plait::kernels

#endif
