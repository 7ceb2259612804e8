// One tile of absorbed attention: scores, softmax, values.
//
// A tile of float32 numbers would not fit in the first-level cache, and going through the second costs more than the
// conversion. So BF16 rows are converted twice, both times in small pieces that stay near: a stretch of a few keys
// while the scores of the keys before are computed, and a strip of a few columns while it is first multiplied.
#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_absorbed_simd.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/vector-inl.h"

// Accumulators are registers only while every lambda is inlined.
#undef INLINED
#define INLINED HWY_ATTR __attribute__((always_inline))

HWY_BEFORE_NAMESPACE();
namespace plait::kernels::HWY_NAMESPACE {
namespace {

constexpr Floats kFloats;
constexpr float kNothingYet = -std::numeric_limits<float>::infinity();
constexpr int kPair = 2 * kLanes;  // numbers that are converted at once
constexpr int kScoreStride = kMaxTileHeads;
static_assert(kMaxTileHeads % kLanes == 0);

// -- Rows of the cache, a pair of vectors at a time: even numbers, odd numbers --

struct BFloat16Row {
  static constexpr int64_t kPairBytes = kPair * 2;
  static HWY_INLINE void load(const std::byte* from, Vector* pair) {
    const hn::Rebind<uint32_t, Floats> words;
    const auto both = hn::LoadU(words, reinterpret_cast<const uint32_t*>(from));
    pair[0] = hn::BitCast(kFloats, hn::ShiftLeft<16>(both));
    pair[1] = hn::BitCast(kFloats, hn::And(both, hn::Set(words, 0xffff0000)));
  }
};
struct Float32Row {
  static constexpr int64_t kPairBytes = kPair * 4;
  static HWY_INLINE void load(const std::byte* from, Vector* pair) {
    const auto* numbers = reinterpret_cast<const float*>(from);
    const Vector low = hn::LoadU(kFloats, numbers), high = hn::LoadU(kFloats, numbers + kLanes);
    pair[0] = hn::ConcatEven(kFloats, high, low);
    pair[1] = hn::ConcatOdd(kFloats, high, low);
  }
};

template <typename Row>
HWY_INLINE void convert_pair(const std::byte* from, float* to) {
  Vector pair[2];
  Row::load(from, pair);
  hn::Store(pair[0], kFloats, to);
  hn::Store(pair[1], kFloats, to + kLanes);
}

template <int64_t kBytes>
HWY_INLINE void prefetch_pair(const std::byte* pair) {
  for (int64_t line = 0; line < kBytes; line += 64) __builtin_prefetch(pair + line, 0, 2);
}

// The next tile arrives spread over the whole work on this one, because a core can wait for a dozen lines only: the
// even pairs of a stretch while scores are computed, the odd ones while values are. Where few heads make values quick,
// all pairs come with the scores.
constexpr int kStretch = 288;  // numbers of a key; its queries stay in the first-level cache
constexpr int kStretchPairs = kStretch / kPair;
constexpr int kValueHeads = kRegisters == 32 ? 8 : 5;  // of a block
static_assert(kStretch % kPair == 0);
bool values_prefetch(const AbsorbedTile& tile) {
  return tile.heads > kValueHeads;
}

// -- Scores --
//
// A vector of queries has four numbers of each of kLanes / 4 heads, so that one load, four numbers of a key in every
// block of 128 bits, serves several multiply-adds. With a number of all heads in a vector every multiply-add would need
// a load of its own, and the load ports would be the limit.

constexpr int kQueryVectors = 4;  // of a block of kLanes heads
constexpr int kScoreTokens = kLanes == 16 ? 4 : 2;
constexpr int kStepsPerPair = kPair / 4 / kScoreTokens;  // so that a block's steps convert all of the next one
constexpr int kKeyStride = kStretch + kPad;
static_assert(kPair % (4 * kScoreTokens) == 0);
static_assert(kKeyTileTokens % kScoreTokens == 0);

// kScoreTokens keys, one stretch, and one block of heads.
struct ScoreBlock {
  const float* keys = nullptr;     // [kScoreTokens, kKeyStride]
  const float* queries = nullptr;  // [stretch / 4, kQueryVectors, kLanes]
  int64_t pairs = 0;               // of the stretch
  float* scores = nullptr;         // [kScoreTokens, kScoreStride]
  bool accumulate = false;
  // What is converted meanwhile, `next_pairs` <= pairs of each row, and fetched to the second-level cache.
  const std::byte* const* next_rows = nullptr;  // [kScoreTokens]
  int64_t next_offset_bytes = 0;
  int64_t next_pairs = 0;
  float* next_keys = nullptr;                  // [kScoreTokens, kKeyStride]
  const std::byte* const* prefetch = nullptr;  // [kScoreTokens]
  int64_t prefetch_mask = ~int64_t{0};         // of indices of pairs: the same pair twice costs less than a branch
};

// The sums over every block of 128 bits: in each block one of a, b, c and d.
HWY_INLINE Vector sums_of_blocks(Vector a, Vector b, Vector c, Vector d) {
  const hn::Repartition<double, Floats> halves;
  const Vector ab = hn::Add(hn::InterleaveLower(kFloats, a, b), hn::InterleaveUpper(kFloats, a, b));
  const Vector cd = hn::Add(hn::InterleaveLower(kFloats, c, d), hn::InterleaveUpper(kFloats, c, d));
  const auto low = hn::InterleaveLower(halves, hn::BitCast(halves, ab), hn::BitCast(halves, cd));
  const auto high = hn::InterleaveUpper(halves, hn::BitCast(halves, ab), hn::BitCast(halves, cd));
  return hn::Add(hn::BitCast(kFloats, low), hn::BitCast(kFloats, high));
}

template <typename Row>
HWY_NOINLINE void score_block(const ScoreBlock& call) {
  const ScoreBlock block = call;  // which no store can change
  Vector sums[kScoreTokens * kQueryVectors];
  unroll<kScoreTokens * kQueryVectors>([&](auto s) INLINED { sums[s] = hn::Zero(kFloats); });
  const float *keys = block.keys, *queries = block.queries;
  const auto multiply = [&]() INLINED {
    unroll<kStepsPerPair>([&](auto step) INLINED {
      Vector query[kQueryVectors];
      unroll<kQueryVectors>(
          [&](auto v) INLINED { query[v] = hn::Load(kFloats, queries + (step * kQueryVectors + v) * kLanes); });
      unroll<kScoreTokens>([&](auto t) INLINED {
        const Vector key = hn::LoadDup128(kFloats, keys + t * kKeyStride + 4 * step);
        unroll<kQueryVectors>([&](auto v) INLINED {
          sums[t * kQueryVectors + v] = hn::MulAdd(key, query[v], sums[t * kQueryVectors + v]);
        });
      });
    });
    keys += 4 * kStepsPerPair;
    queries += kStepsPerPair * kQueryVectors * kLanes;
  };
  for (int64_t token = 0; token < kScoreTokens; ++token) {
    const std::byte* from = block.next_rows[token] + block.next_offset_bytes;
    const std::byte* prefetch = block.prefetch[token] + block.next_offset_bytes;
    float* to = block.next_keys + token * kKeyStride;
    for (int64_t pair = 0; pair < block.next_pairs; ++pair) {
      convert_pair<Row>(from + pair * Row::kPairBytes, to + pair * kPair);
      prefetch_pair<Row::kPairBytes>(prefetch + (pair & block.prefetch_mask) * Row::kPairBytes);
      multiply();
    }
    for (int64_t pair = block.next_pairs; pair < block.pairs; ++pair) multiply();
  }
  unroll<kScoreTokens>([&](auto t) INLINED {
    const Vector* of_token = sums + t * kQueryVectors;
    Vector score = sums_of_blocks(of_token[0], of_token[1], of_token[2], of_token[3]);
    float* to = block.scores + t * kScoreStride;
    if (block.accumulate) score = hn::Add(hn::Load(kFloats, to), score);
    hn::Store(score, kFloats, to);
  });
}

// scores: [kKeyTileTokens, kScoreStride]
template <typename Row>
void score_tile(const AbsorbedTile& tile, float* scores) {
  HWY_ALIGN float keys[2][kScoreTokens * kKeyStride];
  const int64_t pairs = tile.key_width / kPair;
  const auto pairs_from = [&](int64_t first) { return std::min<int64_t>(kStretchPairs, pairs - first); };
  for (int64_t t = 0; t < kScoreTokens; ++t)
    for (int64_t pair = 0; pair < pairs_from(0); ++pair)
      convert_pair<Row>(tile.rows[t] + pair * Row::kPairBytes, keys[0] + t * kKeyStride + pair * kPair);

  int parity = 0;
  for (int64_t first_pair = 0; first_pair < pairs; first_pair += kStretchPairs)
    for (int64_t token = 0; token < tile.tokens; token += kScoreTokens, parity ^= 1) {
      const bool last = token + kScoreTokens >= tile.tokens;
      const int64_t next_token = last ? 0 : token + kScoreTokens;
      const int64_t next_pair = last ? first_pair + kStretchPairs : first_pair;
      ScoreBlock block{.keys = keys[parity],
                       .queries = tile.queries + first_pair * kPair * kLanes,
                       .pairs = pairs_from(first_pair),
                       .scores = scores + token * kScoreStride,
                       .accumulate = first_pair > 0,
                       .next_rows = tile.rows + next_token,
                       .next_offset_bytes = next_pair * Row::kPairBytes,
                       .next_pairs = std::max<int64_t>(pairs_from(next_pair), 0),
                       .next_keys = keys[parity ^ 1],
                       .prefetch = tile.next_rows + next_token,
                       .prefetch_mask = values_prefetch(tile) ? ~int64_t{1} : ~int64_t{0}};
      for (int64_t head = 0; head < tile.heads; head += kLanes) {
        score_block<Row>(block);
        block.queries += tile.key_width * kLanes;
        block.scores += kLanes;
        block.next_pairs = 0;
      }
    }
}

// -- Softmax --

// scores -> exp(score - maximum), heads in lanes, with running maximum and sum; values are rescaled where the maximum
// rises. A maximum of -infinity means that nothing has had any weight so far.
void softmax_tile(const AbsorbedTile& tile, float* scores) {
  for (int64_t head = 0; head < tile.heads; head += kLanes) {
    float* const column = scores + head;
    const Vector before = hn::Load(kFloats, tile.maximum + head);
    Vector maximum = before;
    for (int64_t t = 0; t < tile.tokens; ++t) maximum = hn::Max(maximum, hn::Load(kFloats, column + t * kScoreStride));
    hn::Store(maximum, kFloats, tile.maximum + head);
    // -infinity minus -infinity would be NaN
    const auto nothing_yet = hn::Eq(maximum, hn::Set(kFloats, kNothingYet));
    maximum = hn::IfThenZeroElse(nothing_yet, maximum);
    Vector total = hn::Zero(kFloats);
    for (int64_t t = 0; t < tile.tokens; ++t) {
      const Vector p = exp_non_positive(hn::Sub(hn::Load(kFloats, column + t * kScoreStride), maximum));
      hn::Store(p, kFloats, column + t * kScoreStride);
      total = hn::Add(total, p);
    }
    const Vector correction = exp_non_positive(hn::Sub(before, maximum));
    hn::Store(hn::MulAdd(hn::Load(kFloats, tile.sum + head), correction, total), kFloats, tile.sum + head);
    HWY_ALIGN float corrections[kLanes];
    hn::Store(correction, kFloats, corrections);
    for (int64_t h = 0; h < std::min<int64_t>(kLanes, tile.heads - head); ++h) {
      if (corrections[h] == 1) continue;
      const Vector factor = hn::Set(kFloats, corrections[h]);
      float* values = tile.values + (head + h) * kPair;
      for (int64_t i = 0; i < tile.value_width; i += kPair, values += tile.value_stride) {
        hn::Store(hn::Mul(hn::Load(kFloats, values), factor), kFloats, values);
        hn::Store(hn::Mul(hn::Load(kFloats, values + kLanes), factor), kFloats, values + kLanes);
      }
    }
  }
}

// -- Values --

constexpr int64_t kTokensPerPrefetch = 4, kPrefetchBurst = 8;
constexpr int64_t kPrefetchesPerBlock = kKeyTileTokens / kTokensPerPrefetch;

// One strip, kPair columns, for a few heads.
struct ValueBlock {
  const std::byte* const* rows = nullptr;  // [tokens]
  int64_t offset_bytes = 0;                // of the strip
  int64_t tokens = 0;
  float* strip = nullptr;          // [tokens, kPair]: converted
  const float* weights = nullptr;  // [tokens, kScoreStride]
  float* values = nullptr;         // [heads, kPair]
  // Fetched to the second-level cache meanwhile: a pair of every kTokensPerPrefetch-th token's row.
  const std::byte* const* prefetch = nullptr;  // [tokens / kTokensPerPrefetch]
  int64_t prefetch_offset_bytes = 0;
};

// Leaves the strip converted for the heads that follow.
template <typename Row>
struct FromRow {
  static constexpr int64_t kPairBytes = Row::kPairBytes;
  static HWY_INLINE void load(const ValueBlock& block, int64_t token, float* strip, Vector* pair) {
    Row::load(block.rows[token] + block.offset_bytes, pair);
    hn::Store(pair[0], kFloats, strip);
    hn::Store(pair[1], kFloats, strip + kLanes);
  }
};
// Meanwhile the next strip comes near.
template <typename Row>
struct FromStrip {
  static constexpr int64_t kPairBytes = Row::kPairBytes;
  static HWY_INLINE void load(const ValueBlock& block, int64_t token, const float* strip, Vector* pair) {
    __builtin_prefetch(block.rows[token] + block.offset_bytes + Row::kPairBytes, 0, 3);
    pair[0] = hn::Load(kFloats, strip);
    pair[1] = hn::Load(kFloats, strip + kLanes);
  }
};

template <typename Source, int kHeads>
void value_block(const ValueBlock& call) {
  const ValueBlock block = call;  // which no store can change
  Vector sums[kHeads * 2];
  unroll<kHeads * 2>([&](auto s) INLINED { sums[s] = hn::Load(kFloats, block.values + s * kLanes); });
  const float* weights = block.weights;
  float* strip = block.strip;
  for (int64_t token = 0; token < block.tokens;) {
    for (int64_t i = 0; i < kPrefetchBurst; ++i)
      prefetch_pair<Source::kPairBytes>(block.prefetch[token / kTokensPerPrefetch + i] + block.prefetch_offset_bytes);
    const int64_t end = std::min(token + kPrefetchBurst * kTokensPerPrefetch, block.tokens);
    for (; token < end; ++token, weights += kScoreStride, strip += kPair) {
      Vector pair[2];
      Source::load(block, token, strip, pair);
      unroll<kHeads>([&](auto h) INLINED {
        const Vector weight = hn::Set(kFloats, weights[h]);
        sums[2 * h] = hn::MulAdd(weight, pair[0], sums[2 * h]);
        sums[2 * h + 1] = hn::MulAdd(weight, pair[1], sums[2 * h + 1]);
      });
    }
  }
  unroll<kHeads * 2>([&](auto s) INLINED { hn::Store(sums[s], kFloats, block.values + s * kLanes); });
}

// Blocks for 1 to kValueHeads heads.
struct ValueBlocks {
  void (*of_heads[kValueHeads])(const ValueBlock& block);
};
template <typename Source, int... kHeadsMinus1>
constexpr ValueBlocks value_blocks(std::integer_sequence<int, kHeadsMinus1...>) {
  return {{&value_block<Source, kHeadsMinus1 + 1>...}};
}
template <typename Source>
constexpr ValueBlocks kValueBlocks = value_blocks<Source>(std::make_integer_sequence<int, kValueHeads>());

// What block number `index` of a tile fetches: the odd pairs of each stretch one after the other, each of all rows.
template <typename Row>
void set_prefetch(const AbsorbedTile& tile, int64_t index, ValueBlock& block) {
  constexpr int64_t kOddPairs = kStretchPairs / 2, kBlocksPerPair = kTokensPerPrefetch;
  const int64_t odd = index / kBlocksPerPair, pair = odd / kOddPairs * kStretchPairs + odd % kOddPairs * 2 + 1;
  const bool any = values_prefetch(tile) && pair * kPair < tile.key_width;
  block.prefetch = any ? tile.next_rows + index % kBlocksPerPair * kPrefetchesPerBlock : tile.rows;
  block.prefetch_offset_bytes = any ? pair * Row::kPairBytes : 0;
}

template <typename Row>
void add_values(const AbsorbedTile& tile, const float* weights) {
  HWY_ALIGN float converted[kKeyTileTokens * kPair];
  int64_t index = 0;
  for (int64_t strip = 0; strip < tile.value_width / kPair; ++strip)
    for (int64_t head = 0; head < tile.heads; head += kValueHeads) {
      ValueBlock block{.rows = tile.rows,
                       .offset_bytes = strip * Row::kPairBytes,
                       .tokens = tile.tokens,
                       .strip = converted,
                       .weights = weights + head,
                       .values = tile.values + strip * tile.value_stride + head * kPair};
      set_prefetch<Row>(tile, index++, block);
      const ValueBlocks& blocks = head == 0 ? kValueBlocks<FromRow<Row>> : kValueBlocks<FromStrip<Row>>;
      blocks.of_heads[std::min<int64_t>(kValueHeads, tile.heads - head) - 1](block);
    }
}

template <typename Row>
void attend_rows(const AbsorbedTile& tile) {
  HWY_ALIGN float scores[kKeyTileTokens * kScoreStride];
  score_tile<Row>(tile, scores);
  softmax_tile(tile, scores);
  add_values<Row>(tile, scores);
}

void attend(const AbsorbedTile& tile) {
  if (tile.dtype == DType::kF32)
    attend_rows<Float32Row>(tile);
  else
    attend_rows<BFloat16Row>(tile);
}

// -- What goes in and comes out --

void pack_query(const float* query, int64_t width, float scale, float* to) {
  const Vector factor = hn::Set(kFloats, scale);
  for (int64_t i = 0; i < width; i += kPair) {
    HWY_ALIGN float numbers[kPair] = {};
    std::copy_n(query + i, std::min<int64_t>(kPair, width - i), numbers);
    Vector pair[2];
    Float32Row::load(reinterpret_cast<const std::byte*>(numbers), pair);
    hn::Store(hn::Mul(pair[0], factor), kFloats, numbers);
    hn::Store(hn::Mul(pair[1], factor), kFloats, numbers + kLanes);
    for (int64_t four = 0; four < kPair; four += 4, to += kQueryVectors * kLanes) std::copy_n(numbers + four, 4, to);
  }
}

void merge(const AbsorbedSum& other, const AbsorbedSum& seen, int64_t width) {
  if (*other.maximum == kNothingYet) return;
  const float maximum = std::max(*seen.maximum, *other.maximum);
  const auto factor = [&](const AbsorbedSum& sum)
                          INLINED { return exp_non_positive(hn::Set(kFloats, *sum.maximum - maximum)); };
  const Vector mine = factor(seen), theirs = factor(other);
  *seen.maximum = maximum;
  *seen.sum = *seen.sum * hn::GetLane(mine) + *other.sum * hn::GetLane(theirs);
  for (int64_t i = 0; i < width; i += kPair)
    for (int64_t lane = 0; lane < kPair; lane += kLanes) {
      const int64_t at = i / kPair * seen.value_stride + lane;
      const Vector scaled = hn::Mul(hn::Load(kFloats, seen.values + at), mine);
      hn::Store(hn::MulAdd(hn::Load(kFloats, other.values + at), theirs, scaled), kFloats, seen.values + at);
    }
}

void finish(const AbsorbedSum& seen, float* out, int64_t width) {
  const Vector factor = hn::Set(kFloats, *seen.sum == 0 ? 0 : 1 / *seen.sum);
  const float* values = seen.values;
  for (int64_t i = 0; i < width; i += kPair, values += seen.value_stride) {
    const Vector even = hn::Mul(hn::Load(kFloats, values), factor);
    const Vector odd = hn::Mul(hn::Load(kFloats, values + kLanes), factor);
    HWY_ALIGN float natural[kPair];
    hn::StoreInterleaved2(even, odd, kFloats, natural);
    std::copy_n(natural, std::min<int64_t>(kPair, width - i), out + i);
  }
}

const AbsorbedKernels* kernels() {
  static const AbsorbedKernels kKernels = {
      .lanes = kLanes, .pack_query = pack_query, .attend = attend, .merge = merge, .finish = finish};
  return &kKernels;
}

}  // namespace
}  // namespace plait::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace plait::kernels {
HWY_EXPORT(kernels);
const AbsorbedKernels& absorbed_kernels() {
  return *HWY_DYNAMIC_DISPATCH(kernels)();
}
}  // namespace plait::kernels
#endif
