// Rows of bfloat16 -> e4m3 with a scale per row and 128 numbers, as FP8 products take them; optionally silu(gate) * up
// on the way, which saves one trip through memory between the two products of an expert.
//
//   scale = max(|x|, 1e-4) / 448, q = e4m3(x * (1 / scale)), the largest |x| of 128 numbers; POWER_OF_TWO: the scale is
//   rounded up to a power of two.
// Sixteen lanes take 128 numbers, so one instruction of a warp reads 512 bytes. A block takes 16 rows and a few times
// 128 columns, then its next ones; with groups, only as many rows as there are.
//
// Constants: K (numbers of a row of q, a multiple of 8), GATED (x has gate, then up, 2 * K), POWER_OF_TWO, GROUPS (0:
// all m rows; else each group has room for m rows, of which row_counts[group] exist).

constexpr int kLanes = 16;     // that take 128 numbers
constexpr int kEach = 8;       // numbers of a lane
constexpr int kRowsAtOnce = 16;
constexpr int kThreads = kRowsAtOnce * kLanes;
constexpr int kAhead = 4;      // times 128 columns, all read before the first is used
constexpr int kScaleGroups = (K + 127) / 128;
constexpr int kChunks = (kScaleGroups + kAhead - 1) / kAhead;
constexpr float kLargest = 448;  // of e4m3

__device__ __forceinline__ float low_half(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ void unpack(uint4 words, float (&x)[kEach]) {
  const uint32_t pairs[] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = low_half(pairs[i]);
    x[2 * i + 1] = high_half(pairs[i]);
  }
}

__device__ __forceinline__ float silu(float x) { return __fdividef(x, 1.0F + __expf(-x)); }

__device__ __forceinline__ float scale_of(float largest) {
  const float scale = __fdiv_rn(fmaxf(largest, 1e-4F), kLargest);
  if constexpr (POWER_OF_TWO) {
    const uint32_t bits = __float_as_uint(scale);
    return __uint_as_float((bits + 0x7fffff) & 0x7f800000);
  }
  return scale;
}

__device__ __forceinline__ uint32_t to_e4m3_pair(float low, float high) {
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
}

// Columns 128 * (chunk * kAhead + i) to + 127 for i < kAhead, of one row; all lanes of a warp come, `exists` or not.
__device__ __forceinline__ void quantize_row(const uint16_t* x, uint8_t* q, float* scales, long long row, int chunk,
                                             bool exists, int scale_row, long long scale_stride) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const uint16_t* from = x + row * (GATED ? 2 * K : K);
  float values[kAhead][kEach];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const int column = (chunk * kAhead + i) * 128 + lane * kEach;
    uint4 words = {0, 0, 0, 0};
    if (exists && column < K) words = __ldg(reinterpret_cast<const uint4*>(from + column));
    unpack(words, values[i]);
  }
  if constexpr (GATED) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int column = (chunk * kAhead + i) * 128 + lane * kEach;
      uint4 words = {0, 0, 0, 0};
      if (exists && column < K) words = __ldg(reinterpret_cast<const uint4*>(from + K + column));
      float up[kEach];
      unpack(words, up);
#pragma unroll
      for (int j = 0; j < kEach; ++j) values[i][j] = silu(values[i][j]) * up[j];
    }
  }
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const int group = chunk * kAhead + i, column = group * 128 + lane * kEach;
    float largest = 0;
#pragma unroll
    for (int j = 0; j < kEach; ++j) largest = fmaxf(largest, fabsf(values[i][j]));
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
    const float scale = scale_of(largest), inverse = __fdiv_rn(1.0F, scale);
    if (!exists || column >= K) continue;
    uint2 bytes;
    bytes.x = to_e4m3_pair(values[i][0] * inverse, values[i][1] * inverse) |
              to_e4m3_pair(values[i][2] * inverse, values[i][3] * inverse) << 16;
    bytes.y = to_e4m3_pair(values[i][4] * inverse, values[i][5] * inverse) |
              to_e4m3_pair(values[i][6] * inverse, values[i][7] * inverse) << 16;
    *reinterpret_cast<uint2*>(q + row * K + column) = bytes;
    if (lane == 0) scales[group * scale_stride + scale_row] = scale;
  }
}

extern "C" __global__ void __launch_bounds__(kThreads) quantize(
    const uint16_t* x,  // [rows, K], or [rows, 2 * K] if GATED
    uint8_t* q,         // [rows, K]
    float* scales,      // [kScaleGroups, scale_rows], for each group one after the other
    int m, int scale_rows, const int* row_counts) {
  const int own = static_cast<int>(threadIdx.x) / kLanes;
  int unit = static_cast<int>(blockIdx.x);
  for (int group = 0; group < (GROUPS > 0 ? GROUPS : 1); ++group) {
    const int rows = GROUPS > 0 ? row_counts[group] : m;
    const int units = (rows + kRowsAtOnce - 1) / kRowsAtOnce * kChunks;
    for (; unit < units; unit += static_cast<int>(gridDim.x)) {
      const int row = unit / kChunks * kRowsAtOnce + own;
      quantize_row(x, q, scales + static_cast<long long>(group) * kScaleGroups * scale_rows,
                   static_cast<long long>(group) * m + row, unit % kChunks, row < rows, row, scale_rows);
    }
    unit -= units;
  }
}
