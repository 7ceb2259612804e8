// The kernels for float32 multiply-adds, from one source for every instruction set that Highway knows.
#include <atomic>

#include "kernels/cpu/linear_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_simd.cpp"
// SSSE3 is what every x86-64-v2 machine has; SSE4 would add a copy that is no faster. SVE vectors have no size at
// compile time.
#define HWY_DISABLED_TARGETS (HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace plait::kernels::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::CappedTag<float, 16>;
using Words = hn::Rebind<uint32_t, Floats>;
using Vector = hn::Vec<Floats>;
constexpr Floats kFloats;
constexpr Words kWords;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(kFloats));
constexpr int kParts = 16 / kLanes;  // vectors per panel
constexpr int kRegisters = HWY_TARGET <= HWY_AVX3 ? 32 : 16;

// body(0), ..., body(N - 1) with constants, so that arrays of vectors become registers.
template <int N>
struct Unroll {
  template <typename Body>
  static HWY_INLINE void run(const Body& body) {
    Unroll<N - 1>::run(body);
    body(std::integral_constant<int, N - 1>());
  }
};
template <>
struct Unroll<0> {
  template <typename Body>
  static HWY_INLINE void run(const Body&) {}
};

struct Panel {
  Vector part[kParts];
};

// Two successive inputs of a panel.
struct InputPair {
  Panel even, odd;
};

struct F32Weights {
  static constexpr WeightFormat kFormat = WeightFormat::kF32;
  static constexpr int64_t kPairBytes = 128;
  static HWY_INLINE void load(const std::byte* from, InputPair& pair) {
    const auto* floats = reinterpret_cast<const float*>(from);
    Unroll<kParts>::run([&](auto p) HWY_ATTR {
      pair.even.part[p] = hn::Load(kFloats, floats + p * kLanes);
      pair.odd.part[p] = hn::Load(kFloats, floats + 16 + p * kLanes);
    });
  }
};

struct BF16Weights {
  static constexpr WeightFormat kFormat = WeightFormat::kBF16;
  static constexpr int64_t kPairBytes = 64;
  static HWY_INLINE void load(const std::byte* from, InputPair& pair) {
    const auto* words = reinterpret_cast<const uint32_t*>(from);
    Unroll<kParts>::run([&](auto p) HWY_ATTR {
      const auto word = hn::Load(kWords, words + p * kLanes);
      pair.even.part[p] = hn::BitCast(kFloats, hn::ShiftLeft<16>(word));
      pair.odd.part[p] = hn::BitCast(kFloats, hn::And(word, hn::Set(kWords, 0xffff0000)));
    });
  }
};

// As IEEE half, the bits of e4m3 with the exponent one place lower mean 2^-8 of the value, subnormals included.
struct F8Weights {
  static constexpr WeightFormat kFormat = WeightFormat::kF8Block;
  static constexpr int64_t kPairBytes = 32;
  static HWY_INLINE void load(const std::byte* from, InputPair& pair) {
    const hn::Rebind<int16_t, Floats> shorts;
    const hn::Rebind<hwy::float16_t, Floats> halves;
    const auto mask = hn::Set(shorts, static_cast<int16_t>(0xbf80));
    Unroll<kParts>::run([&](auto p) HWY_ATTR {
      const auto word = hn::Load(shorts, reinterpret_cast<const int16_t*>(from) + p * kLanes);
      const auto even = hn::And(hn::ShiftRight<1>(hn::ShiftLeft<8>(word)), mask);
      const auto odd = hn::And(hn::ShiftRight<1>(word), mask);
      pair.even.part[p] = hn::PromoteTo(kFloats, hn::BitCast(halves, even));
      pair.odd.part[p] = hn::PromoteTo(kFloats, hn::BitCast(halves, odd));
    });
  }
};

// Accumulators of Rows x Panels results.
template <int Rows, int Panels>
struct Tile {
  Panel sum[Rows][Panels];

  template <typename Body>
  HWY_INLINE void for_each(const Body& body) {
    Unroll<Rows>::run([&](auto m) HWY_ATTR {
      Unroll<Panels>::run(
          [&](auto n) HWY_ATTR { Unroll<kParts>::run([&](auto p) HWY_ATTR { body(m, n, p, sum[m][n].part[p]); }); });
    });
  }
  HWY_INLINE void clear() {
    for_each([](auto, auto, auto, Vector& part) HWY_ATTR { part = hn::Zero(kFloats); });
  }
  // x: this input of row 0; rows are 16 words apart.
  HWY_INLINE void multiply_add(const float* HWY_RESTRICT x, const Panel (&weights)[Panels]) {
    Unroll<Rows>::run([&](auto m) HWY_ATTR {
      const auto value = hn::Set(kFloats, x[m * 16]);
      Unroll<Panels>::run([&](auto n) HWY_ATTR {
        Unroll<kParts>::run(
            [&](auto p) HWY_ATTR { sum[m][n].part[p] = hn::MulAdd(value, weights[n].part[p], sum[m][n].part[p]); });
      });
    });
  }
};

// Far enough ahead to hide the latency of memory at one core's share of its bandwidth.
constexpr int64_t kPrefetchBytes = 1024;

template <typename Weights, int Rows, int Panels>
HWY_INLINE void multiply_stretch(Tile<Rows, Panels>& tile, const float*& x, const std::byte*& weights,
                                 int64_t panel_bytes, int64_t inputs) {
  for (int64_t k = 0; k < inputs; k += 16) {
    for (int pair = 0; pair < 8; ++pair) {
      Panel even[Panels], odd[Panels];
      Unroll<Panels>::run([&](auto n) HWY_ATTR {
        InputPair loaded;
        const std::byte* from = weights + n * panel_bytes;
        hwy::Prefetch(from + kPrefetchBytes);
        Weights::load(from, loaded);
        even[n] = loaded.even;
        odd[n] = loaded.odd;
      });
      tile.multiply_add(x, even);
      tile.multiply_add(x + 1, odd);
      x += 2;
      weights += Weights::kPairBytes;
    }
    x += (Rows - 1) * 16;
  }
}

template <int Rows, int Panels>
HWY_INLINE void store_results(const DirectCall& call, Tile<Rows, Panels>& tile) {
  if (call.outputs >= Panels * 16) {
    tile.for_each([&](auto m, auto n, auto p, Vector& part)
                      HWY_ATTR { hn::StoreU(part, kFloats, call.y + m * call.y_stride + n * 16 + p * kLanes); });
    return;
  }
  HWY_ALIGN float results[Rows][Panels * 16];
  tile.for_each([&](auto m, auto n, auto p, Vector& part)
                    HWY_ATTR { hn::Store(part, kFloats, &results[m][n * 16 + p * kLanes]); });
  for (int m = 0; m < Rows; ++m)
    std::memcpy(call.y + m * call.y_stride, results[m], static_cast<size_t>(call.outputs) * sizeof(float));
}

template <typename Weights, int Rows, int Panels>
void direct_kernel(const DirectCall& call) {
  const auto* x = static_cast<const float*>(call.x);
  const std::byte* weights = call.weights;
  Tile<Rows, Panels> tile;
  tile.clear();
  multiply_stretch<Weights>(tile, x, weights, call.panel_bytes, call.padded_in);
  store_results(call, tile);
}

template <int Rows, int Panels>
void direct_f8_kernel(const DirectCall& call) {
  const auto* x = static_cast<const float*>(call.x);
  const std::byte* weights = call.weights;
  HWY_ALIGN float sums[Rows][Panels * 16] = {};
  Tile<Rows, Panels> tile;
  for (int64_t begin = 0; begin < call.padded_in; begin += 128) {
    tile.clear();
    multiply_stretch<F8Weights>(tile, x, weights, call.panel_bytes, HWY_MIN(128, call.padded_in - begin));
    tile.for_each([&](auto m, auto n, auto p, Vector& part) HWY_ATTR {
      const auto* scales = reinterpret_cast<const float*>(weights + n * call.panel_bytes);
      float* sum = &sums[m][n * 16 + p * kLanes];
      part = hn::MulAdd(part, hn::Load(kFloats, scales + p * kLanes), hn::Load(kFloats, sum));
      hn::Store(part, kFloats, sum);
    });
    weights += 16 * sizeof(float);
  }
  store_results(call, tile);
}

template <bool kScaled, int Rows, int Panels>
void blocked_kernel(const BlockedCall& call) {
  const auto* x = reinterpret_cast<const float*>(call.x);
  const auto* weights = reinterpret_cast<const float*>(call.weights);
  const int64_t stride = call.weight_stride_bytes / int64_t{sizeof(float)};
  Tile<Rows, Panels> tile;
  tile.for_each([&](auto m, auto n, auto p, Vector& part) HWY_ATTR {
    part = kScaled ? hn::Zero(kFloats) : hn::Load(kFloats, call.sums + n * call.sums_stride + m * 16 + p * kLanes);
  });
  for (int64_t word = 0; word < call.words; word += 16) {
    for (int i = 0; i < 16; ++i) {
      Panel loaded[Panels];
      Unroll<Panels>::run([&](auto n) HWY_ATTR {
        Unroll<kParts>::run([&](auto p)
                                HWY_ATTR { loaded[n].part[p] = hn::Load(kFloats, weights + n * stride + p * kLanes); });
      });
      tile.multiply_add(x, loaded);
      x += 1;
      weights += 16;
    }
    x += (Rows - 1) * 16;
  }
  tile.for_each([&](auto m, auto n, auto p, Vector& part) HWY_ATTR {
    float* sum = call.sums + n * call.sums_stride + m * 16 + p * kLanes;
    if constexpr (kScaled) {
      const auto scale = hn::Load(kFloats, call.scales + n * call.scale_stride + p * kLanes);
      part = hn::MulAdd(part, scale, hn::Load(kFloats, sum));
    }
    hn::Store(part, kFloats, sum);
  });
}

template <typename Weights>
void decode(const std::byte* panel, int64_t inputs, std::byte* out) {
  auto* to = reinterpret_cast<float*>(out);
  for (int64_t k = 0; k < inputs; k += 2, panel += Weights::kPairBytes, to += 32) {
    InputPair pair;
    Weights::load(panel, pair);
    Unroll<kParts>::run([&](auto p) HWY_ATTR {
      hn::Store(pair.even.part[p], kFloats, to + p * kLanes);
      hn::Store(pair.odd.part[p], kFloats, to + 16 + p * kLanes);
    });
  }
}

// To nearest even, as BFloat16's constructor does; NaN stays NaN.
HWY_INLINE Vector round_to_bfloat16(Vector value) {
  const auto word = hn::BitCast(kWords, value);
  const auto odd = hn::And(hn::ShiftRight<16>(word), hn::Set(kWords, 1));
  const auto rounded = hn::Add(word, hn::Add(odd, hn::Set(kWords, 0x7fff)));
  const auto quiet = hn::Or(word, hn::Set(kWords, 0x400000));
  const auto chosen = hn::IfThenElse(hn::RebindMask(kWords, hn::IsNaN(value)), quiet, rounded);
  return hn::BitCast(kFloats, hn::And(chosen, hn::Set(kWords, 0xffff0000)));
}

void pack_row(const float* x, int64_t inputs, int64_t padded_in, Activation activation, int64_t tile_rows,
              uint32_t* out) {
  for (int64_t k = 0; k < padded_in; k += 16) {
    HWY_ALIGN float padded[16] = {};
    const float* from = x + k;
    if (k + 16 > inputs) {
      if (k < inputs) std::memcpy(padded, from, static_cast<size_t>(inputs - k) * sizeof(float));
      from = padded;
    }
    auto* to = reinterpret_cast<float*>(out) + k * tile_rows;
    Unroll<kParts>::run([&](auto p) HWY_ATTR {
      const auto value = hn::LoadU(kFloats, from + p * kLanes);
      hn::Store(activation == Activation::kBFloat16 ? round_to_bfloat16(value) : value, kFloats, to + p * kLanes);
    });
  }
}

// -- The table
// ---------------------------------------------------------------------------------------------------------

// A direct kernel holds two decoded inputs of every panel beside its sums, a blocked one the weights of one input; both
// need a register or two more for x.
constexpr int kMaxDirectRows = kRegisters == 32 ? 12 : HWY_MAX(1, (kRegisters - 2 - 2 * kParts) / kParts);
constexpr int kBlockedPanels = kRegisters == 32 ? 2 : 1;
constexpr int kMaxBlockedRows = HWY_MAX(1, (kRegisters - 1 - kBlockedPanels * kParts) / (kBlockedPanels * kParts));

constexpr int direct_panels(int rows) {
  int panels = 1;
  while (panels < 4 && (rows + 2) * panels * 2 * kParts + 2 <= kRegisters) panels *= 2;
  return panels;
}

template <int Rows>
HWY_INLINE void add_direct(LinearKernels& table) {
  constexpr int kPanels = direct_panels(Rows);
  table.direct[static_cast<int>(WeightFormat::kF32)][Rows] = {kPanels, direct_kernel<F32Weights, Rows, kPanels>,
                                                              direct_kernel<F32Weights, Rows, 1>};
  table.direct[static_cast<int>(WeightFormat::kBF16)][Rows] = {kPanels, direct_kernel<BF16Weights, Rows, kPanels>,
                                                               direct_kernel<BF16Weights, Rows, 1>};
  table.direct[static_cast<int>(WeightFormat::kF8Block)][Rows] = {kPanels, direct_f8_kernel<Rows, kPanels>,
                                                                  direct_f8_kernel<Rows, 1>};
}

template <int Rows>
HWY_INLINE void add_blocked(LinearKernels& table) {
  table.blocked[0][Rows] = {kBlockedPanels, blocked_kernel<false, Rows, kBlockedPanels>,
                            blocked_kernel<false, Rows, 1>};
  table.blocked[1][Rows] = {kBlockedPanels, blocked_kernel<true, Rows, kBlockedPanels>, blocked_kernel<true, Rows, 1>};
}

LinearKernels make_table() {
  LinearKernels table{};
  table.name = hwy::TargetName(HWY_TARGET);
  table.max_direct_rows = kMaxDirectRows;
  table.max_blocked_rows = kMaxBlockedRows;
  Unroll<kMaxDirectRows>::run([&](auto rows) { add_direct<rows + 1>(table); });
  Unroll<kMaxBlockedRows>::run([&](auto rows) { add_blocked<rows + 1>(table); });
  table.decode[static_cast<int>(WeightFormat::kBF16)] = decode<BF16Weights>;
  table.decode[static_cast<int>(WeightFormat::kF8Block)] = decode<F8Weights>;
  table.pack_row = pack_row;
  return table;
}

const LinearKernels* table() {
  static const LinearKernels kTable = make_table();
  return &kTable;
}

}  // namespace
}  // namespace plait::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace plait::kernels {

HWY_EXPORT(table);

namespace {

std::atomic<bool> bfloat16_products_allowed{true};

void use_highway_targets(int64_t targets) {  // 0: all that the machine has
  hwy::SetSupportedTargetsForTest(targets);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

const LinearKernels* kernels_of_bfloat16_pairs() {
  return bfloat16_products_allowed.load(std::memory_order_relaxed) ? avx512_bf16_linear_kernels() : nullptr;
}

}  // namespace

const LinearKernels& linear_kernels(WeightFormat format, Activation activation) {
  // Products of bfloat16 pairs need both sides in bfloat16; every e4m3 value has one.
  if (activation == Activation::kBFloat16 && format != WeightFormat::kF32)
    if (const LinearKernels* kernels = kernels_of_bfloat16_pairs()) return *kernels;
  return *HWY_DYNAMIC_DISPATCH(table)();
}

std::vector<std::string_view> linear_targets() {
  std::vector<std::string_view> names;
  if (const LinearKernels* kernels = avx512_bf16_linear_kernels()) names.push_back(kernels->name);
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) names.push_back(hwy::TargetName(target));
  return names;
}

bool select_linear_target(std::string_view name) {
  use_highway_targets(0);
  const LinearKernels* pairs = avx512_bf16_linear_kernels();
  bfloat16_products_allowed = name.empty() || (pairs && name == pairs->name);
  if (bfloat16_products_allowed) return true;
  for (const int64_t target : hwy::SupportedAndGeneratedTargets())
    if (name == hwy::TargetName(target)) {
      use_highway_targets(target);
      return true;
    }
  return false;
}

}  // namespace plait::kernels
#endif
