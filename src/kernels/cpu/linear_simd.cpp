// The kernels for float32 multiply-adds, from one source for every instruction set that Highway knows.
#include <atomic>
#include <utility>

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

// For lambdas. One call that is not inlined, and a kernel's sums live in memory instead of registers.
#undef INLINED
#define INLINED HWY_ATTR __attribute__((always_inline))

using Floats = hn::CappedTag<float, 16>;
using Words = hn::Rebind<uint32_t, Floats>;
using Vector = hn::Vec<Floats>;
constexpr Floats kFloats;
constexpr Words kWords;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(kFloats));
constexpr int kParts = 16 / kLanes;  // vectors per panel
constexpr int kRegisters = HWY_TARGET <= HWY_AVX3 ? 32 : 16;

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

struct Panel {
  Vector part[kParts];
};

// How to read kInputs successive inputs of a panel: `stage` loads what they share, `input` makes one of them.
// kRegisters: of each part, while the inputs of a step are in use.
struct F32Weights {
  static constexpr bool kScaled = false;
  static constexpr int kInputs = 2, kRegisters = 1;
  static constexpr int64_t kBytes = 128;
  using Staged = const float*;
  static HWY_INLINE void stage(const std::byte* from, Staged& staged) { staged = reinterpret_cast<const float*>(from); }
  static HWY_INLINE Vector input(const Staged& staged, int input, int part) {
    return hn::Load(kFloats, staged + input * 16 + part * kLanes);
  }
};

struct BF16Weights {
  static constexpr bool kScaled = false;
  static constexpr int kInputs = 2, kRegisters = 2;
  static constexpr int64_t kBytes = 64;
  struct Staged {
    hn::Vec<Words> part[kParts];
  };
  static HWY_INLINE void stage(const std::byte* from, Staged& staged) {
    Unroll<kParts>::run([&](int p) INLINED {
      staged.part[p] = hn::Load(kWords, reinterpret_cast<const uint32_t*>(from) + p * kLanes);
    });
  }
  static HWY_INLINE Vector input(const Staged& staged, int input, int part) {
    if (input == 0) return hn::BitCast(kFloats, hn::ShiftLeft<16>(staged.part[part]));
    return hn::BitCast(kFloats, hn::And(staged.part[part], hn::Set(kWords, 0xffff0000)));
  }
};

// As IEEE half, the bits of e4m3 with the exponent one place lower mean 2^-8 of the value, subnormals included.
struct F8Weights {
  using Shorts = hn::Repartition<int16_t, Floats>;
  using Halves = hn::Rebind<hwy::float16_t, Floats>;
  static constexpr bool kScaled = true;
  static constexpr int kInputs = kParts == 1 ? 4 : 2, kRegisters = 1;  // at least one vector of pairs
  static constexpr int64_t kBytes = kInputs * 16;
  struct Staged {
    HWY_ALIGN int16_t half[2][kInputs * 8];  // [input % 2][input / 2][16]
  };
  static HWY_INLINE void stage(const std::byte* from, Staged& staged) {
    constexpr Shorts kShorts;
    constexpr int kShortLanes = static_cast<int>(hn::MaxLanes(kShorts));
    const auto mask = hn::Set(kShorts, static_cast<int16_t>(0xbf80));
    Unroll<kInputs * 8 / kShortLanes>::run([&](int v) INLINED {
      const auto pairs = hn::Load(kShorts, reinterpret_cast<const int16_t*>(from) + v * kShortLanes);
      const auto even = hn::And(hn::ShiftRight<1>(hn::ShiftLeft<8>(pairs)), mask);
      const auto odd = hn::And(hn::ShiftRight<1>(pairs), mask);
      hn::Store(even, kShorts, staged.half[0] + v * kShortLanes);
      hn::Store(odd, kShorts, staged.half[1] + v * kShortLanes);
    });
    // Through memory on purpose: to widen from registers costs a shuffle for each half of a vector, and the one port
    // for shuffles is what e4m3 would wait for.
    asm("" : "+m"(staged.half));
  }
  static HWY_INLINE Vector input(const Staged& staged, int input, int part) {
    const int16_t* half = staged.half[input % 2] + input / 2 * 16 + part * kLanes;
    return hn::PromoteTo(kFloats, hn::Load(Halves(), reinterpret_cast<const hwy::float16_t*>(half)));
  }
};

// Decoded kF8Block.
struct F8Floats : F32Weights {
  static constexpr bool kScaled = true;
};

// Accumulators of Rows x Panels results.
template <int Rows, int Panels>
struct Tile {
  Panel sum[Rows][Panels];

  template <typename Body>
  HWY_INLINE void for_each(const Body& body) {
    Unroll<Rows>::run([&](int m) INLINED {
      Unroll<Panels>::run(
          [&](int n) INLINED { Unroll<kParts>::run([&](int p) INLINED { body(m, n, p, sum[m][n].part[p]); }); });
    });
  }
  HWY_INLINE void clear() {
    for_each([](int, int, int, Vector& part) INLINED { part = hn::Zero(kFloats); });
  }
  // x: this input of row 0; rows are 16 words apart.
  HWY_INLINE void multiply_add(const float* HWY_RESTRICT x, const Panel (&weights)[Panels]) {
    Unroll<Rows>::run([&](int m) INLINED {
      const auto value = hn::Set(kFloats, x[m * 16]);
      Unroll<Panels>::run([&](int n) INLINED {
        Unroll<kParts>::run(
            [&](int p) INLINED { sum[m][n].part[p] = hn::MulAdd(value, weights[n].part[p], sum[m][n].part[p]); });
      });
    });
  }
};

// Far enough ahead in each panel to hide the latency of memory at one core's share of its bandwidth. A single panel of
// many rows is alone in filling the core's line buffers, and gains from more.
constexpr int64_t kPrefetchBytes = 1024;
constexpr int64_t kSinglePrefetchBytes = 3072;

template <typename Weights, int Rows, int Panels>
HWY_INLINE void multiply_stretch(Tile<Rows, Panels>& tile, const float*& x, const std::byte*& weights,
                                 int64_t panel_bytes, int64_t inputs) {
  constexpr int kInputs = Weights::kInputs;
  for (int64_t k = 0; k < inputs; k += 16) {
    for (int step = 0; step < 16 / kInputs; ++step) {
      typename Weights::Staged staged[Panels];
      Unroll<Panels>::run([&](int n) INLINED {
        const std::byte* from = weights + n * panel_bytes;
        hwy::Prefetch(from + (Panels == 1 ? kSinglePrefetchBytes : kPrefetchBytes));
        Weights::stage(from, staged[n]);
      });
      Unroll<kInputs>::run([&](int i) INLINED {
        Panel loaded[Panels];
        Unroll<Panels>::run([&](int n) INLINED {
          Unroll<kParts>::run([&](int p) INLINED { loaded[n].part[p] = Weights::input(staged[n], i, p); });
        });
        tile.multiply_add(x + i, loaded);
      });
      x += kInputs;
      weights += Weights::kBytes;
    }
    x += (Rows - 1) * 16;
  }
}

// y of one call, in memory: itself, or a copy with room for whole panels.
template <int Rows, int Panels>
struct Results {
  HWY_ALIGN float padded[Rows][Panels * 16];
  float* data;
  int64_t stride;

  HWY_INLINE explicit Results(const PanelCall& call) : data(call.y), stride(call.y_stride) {
    if (call.outputs >= Panels * 16) return;
    for (int m = 0; call.accumulate && m < Rows; ++m)
      std::memcpy(padded[m], call.y + m * call.y_stride, static_cast<size_t>(call.outputs) * sizeof(float));
    data = padded[0];
    stride = Panels * 16;
  }
  HWY_INLINE void finish(const PanelCall& call) const {
    if (data == call.y) return;
    for (int m = 0; m < Rows; ++m)
      std::memcpy(call.y + m * call.y_stride, padded[m], static_cast<size_t>(call.outputs) * sizeof(float));
  }
  HWY_INLINE float* at(int m, int n, int p) const { return data + m * stride + n * 16 + p * kLanes; }
};

template <typename Weights, int Rows, int Panels>
void panel_kernel(const PanelCall& call) {
  const auto* x = reinterpret_cast<const float*>(call.x);
  const std::byte* weights = call.weights;
  Results<Rows, Panels> results(call);
  Tile<Rows, Panels> tile;
  tile.for_each([&](int m, int n, int p, Vector& part)
                    INLINED { part = call.accumulate ? hn::LoadU(kFloats, results.at(m, n, p)) : hn::Zero(kFloats); });
  if constexpr (Weights::kScaled) {
    HWY_ALIGN float sums[Rows][Panels * 16];
    tile.for_each([&](int m, int n, int p, Vector& part)
                      INLINED { hn::Store(part, kFloats, &sums[m][n * 16 + p * kLanes]); });
    for (int64_t begin = 0; begin < call.inputs; begin += 128) {
      tile.clear();
      multiply_stretch<Weights>(tile, x, weights, call.panel_bytes, HWY_MIN(128, call.inputs - begin));
      tile.for_each([&](int m, int n, int p, Vector& part) INLINED {
        const auto* scales = reinterpret_cast<const float*>(weights + n * call.panel_bytes);
        float* sum = &sums[m][n * 16 + p * kLanes];
        part = hn::MulAdd(part, hn::Load(kFloats, scales + p * kLanes), hn::Load(kFloats, sum));
        hn::Store(part, kFloats, sum);
      });
      weights += 16 * sizeof(float);
    }
  } else {
    multiply_stretch<Weights>(tile, x, weights, call.panel_bytes, call.inputs);
  }
  tile.for_each([&](int m, int n, int p, Vector& part) INLINED { hn::StoreU(part, kFloats, results.at(m, n, p)); });
  results.finish(call);
}

void decode_f8(const std::byte* panel, int64_t inputs, std::byte* out) {
  auto* to = reinterpret_cast<float*>(out);
  for (int64_t begin = 0; begin < inputs; begin += 128) {
    const int64_t end = HWY_MIN(inputs, begin + 128);
    for (int64_t k = begin; k < end; k += F8Weights::kInputs) {
      typename F8Weights::Staged staged;
      hwy::Prefetch(panel + kPrefetchBytes);
      F8Weights::stage(panel, staged);
      Unroll<F8Weights::kInputs>::run([&](int i) INLINED {
        Unroll<kParts>::run([&](int p)
                                INLINED { hn::Store(F8Weights::input(staged, i, p), kFloats, to + p * kLanes); });
        to += 16;
      });
      panel += F8Weights::kBytes;
    }
    std::memcpy(to, panel, 16 * sizeof(float));  // the scales
    panel += 16 * sizeof(float);
    to += 16;
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
    Unroll<kParts>::run([&](int p) INLINED {
      const auto value = hn::LoadU(kFloats, from + p * kLanes);
      hn::Store(activation == Activation::kBFloat16 ? round_to_bfloat16(value) : value, kFloats, to + p * kLanes);
    });
  }
}

// -- The table
// ---------------------------------------------------------------------------------------------------------

// With 32 registers a tile of one panel can have so many rows that its multiply-adds outlast the arrival of the weights
// from memory; with two panels it needs half the loads of x.
constexpr int kMaxSingleRows = kFewSizes ? 3 : kRegisters == 32 ? 25 : HWY_MAX(1, (kRegisters - 2) / kParts - 2);
constexpr int kMaxTileRowsHere = kFewSizes ? 2 : kRegisters == 32 ? 13 : kMaxSingleRows;

// Registers: the sums, the weights in use of every panel, one or two for x.
constexpr int panels_for(int rows, int weight_registers) {
  int panels = 1;
  while (panels < 4 && (rows + weight_registers) * panels * 2 * kParts + 2 <= kRegisters) panels *= 2;
  return panels;
}

template <typename Weights, int Rows>
HWY_INLINE LinearKernels::Sizes sizes() {
  constexpr int kPanels = panels_for(Rows, Weights::kRegisters);
  return {kPanels, panel_kernel<Weights, Rows, kPanels>, panel_kernel<Weights, Rows, 1>};
}

template <int Rows>
HWY_INLINE void add_rows(LinearKernels& table) {
  table.kernels[static_cast<int>(WeightFormat::kF32)][Rows] = sizes<F32Weights, Rows>();
  table.kernels[static_cast<int>(WeightFormat::kBF16)][Rows] = sizes<BF16Weights, Rows>();
  table.kernels[static_cast<int>(WeightFormat::kF8Block)][Rows] = sizes<F8Weights, Rows>();
  if constexpr (Rows <= kMaxTileRowsHere) table.kernels[kDecodedF8][Rows] = sizes<F8Floats, Rows>();
}

template <int... I>
void add_all_rows(LinearKernels& table, std::integer_sequence<int, I...>) {
  (add_rows<I + 1>(table), ...);
}

LinearKernels make_table() {
  LinearKernels table{};
  table.name = hwy::TargetName(HWY_TARGET);
  table.max_single_rows = kMaxSingleRows;
  table.max_tile_rows = kMaxTileRowsHere;
  add_all_rows(table, std::make_integer_sequence<int, kMaxSingleRows>());
  table.decode = decode_f8;
  table.decoded_bytes = sizeof(float);
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

// AMD's vdpbf16ps does twice the work of a float32 multiply-add in the same time, Intel's less than half of it
// (docs/kernels.md).
bool bfloat16_products_are_faster() {
#if defined(__x86_64__)
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

std::atomic<bool> bfloat16_products_allowed{bfloat16_products_are_faster()};

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
  const bool pairs_chosen = pairs && name == pairs->name;
  bfloat16_products_allowed = name.empty() ? bfloat16_products_are_faster() : pairs_chosen;
  if (name.empty() || pairs_chosen) return true;
  for (const int64_t target : hwy::SupportedAndGeneratedTargets())
    if (name == hwy::TargetName(target)) {
      use_highway_targets(target);
      return true;
    }
  return false;
}

}  // namespace plait::kernels
#endif
