// D = A * B^T for few rows of tokens, as decoding has them: what takes time is to read the weights once. Same operands
// and arithmetic as gemm.cu, other roles: 64 rows of weights are the tall side of a product, up to TOKENS tokens the
// narrow one, so no tensor core works on rows that do not exist.
//
// A block fetches 64 weight rows along a part of K; the SPLIT blocks of a cluster share one such strip of D, each with
// its part, and add their sums in the order of their ranks, so results do not depend on timing. Several blocks fit on a
// multiprocessor: together they keep enough bytes under way.
//
// Constants: ELEMENT_BYTES (1: e4m3, 2: bfloat16), RESULT_BYTES (of D; 2: bfloat16, 4: float32), N, K, TOKENS (a
// multiple of 8), SPLIT, STAGES, SHARED_BYTES. multiply() stands before this text.

constexpr bool kScaled = ELEMENT_BYTES == 1;
constexpr int kBlockBytes = 128;  // of K in a stage
constexpr int kBlockK = kBlockBytes / ELEMENT_BYTES;
constexpr int kBlocksK = (K + kBlockK - 1) / kBlockK;
constexpr int kStrip = 64;  // weight rows
constexpr int kMathThreads = 128;
constexpr int kThreads = kMathThreads + 32;
constexpr int kPartialPitch = kStrip + 4;  // floats; no two of a warp's stores meet in a bank

constexpr int kWeightsBytes = kStrip * kBlockBytes;
constexpr int kTokensBytes = TOKENS * kBlockBytes;
constexpr int kScalesBytes = kScaled ? TOKENS * 4 : 0;

struct alignas(1024) Shared {
  uint8_t weights[STAGES][kWeightsBytes];
  uint8_t tokens[STAGES][kTokensBytes];
  float partial[TOKENS * kPartialPitch];  // [token, weight row]
  alignas(128) float scales[STAGES][kScaled ? (TOKENS + 31) / 32 * 32 : 1];
  uint64_t full[STAGES];
  uint64_t empty[STAGES];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launch and the kernel disagree");

// This block's part of K, in stages of 128 bytes.
struct Range {
  int begin, end;
};
__device__ __forceinline__ Range range_of(int rank) {
  return {kBlocksK * rank / SPLIT, kBlocksK * (rank + 1) / SPLIT};
}

__device__ __forceinline__ void fetch_strip(Shared& shared, Range range, int strip, int first_token, const TensorMap& a,
                                            const TensorMap& b, const TensorMap& a_scales) {
#pragma unroll 1
  for (int k = range.begin; k < range.end; ++k) {
    const int turn = k - range.begin, s = turn % STAGES;
    uint64_t* full = &shared.full[s];
    barrier_wait(&shared.empty[s], turn / STAGES % 2 ^ 1);
    barrier_arrive_expecting(full, kWeightsBytes + kTokensBytes + kScalesBytes);
    copy_box(shared.weights[s], &b, full, k * kBlockBytes, strip * kStrip);
    copy_box(shared.tokens[s], &a, full, k * kBlockBytes, first_token);
    if constexpr (kScaled) copy_box(shared.scales[s], &a_scales, full, first_token, k);
  }
}

// Of tokens 8j to 8j+7, lane l has tokens 2(l%4) and one more and weight rows l/4 and l/4+8 of its warp's sixteen.
__device__ __forceinline__ void sum_strip(Shared& shared, Range range, int strip, const float* b_scales,
                                          float (&sum)[TOKENS / 2]) {
  const int column = static_cast<int>(threadIdx.x % 4) * 2;
  const float* row_scales = b_scales + strip * kStrip / 128 * kBlocksK;
  float part[TOKENS / 2];
#pragma unroll
  for (float& value : sum) value = 0;
  for (int k = range.begin; k < range.end; ++k) {
    const int turn = k - range.begin, s = turn % STAGES;
    const float weight_scale = kScaled ? __ldg(row_scales + k) : 1.0F;
    barrier_wait(&shared.full[s], turn / STAGES % 2);
    float scales[TOKENS / 4];
    if constexpr (kScaled) {
#pragma unroll
      for (int j = 0; j < TOKENS / 8; ++j) {
        scales[2 * j] = shared.scales[s][8 * j + column];
        scales[2 * j + 1] = shared.scales[s][8 * j + column + 1];
      }
    }
    const uint64_t weights = matrix_descriptor(shared.weights[s]), tokens = matrix_descriptor(shared.tokens[s]);
#pragma unroll
    for (float& value : part) hold(value);
    products_begin();
#pragma unroll
    for (int step = 0; step < kBlockBytes / 32; ++step) multiply(part, weights + 2 * step, tokens + 2 * step, step > 0);
    products_commit();
#pragma unroll
    for (float& value : part) hold(value);
    products_wait<0>();
    if (threadIdx.x % 32 == 0) barrier_arrive(&shared.empty[s]);
#pragma unroll
    for (int j = 0; j < TOKENS / 8; ++j) {
      const float even = kScaled ? scales[2 * j] * weight_scale : 1.0F;
      const float odd = kScaled ? scales[2 * j + 1] * weight_scale : 1.0F;
      sum[4 * j] += even * part[4 * j];
      sum[4 * j + 1] += odd * part[4 * j + 1];
      sum[4 * j + 2] += even * part[4 * j + 2];
      sum[4 * j + 3] += odd * part[4 * j + 3];
    }
  }
}

// Two neighbouring numbers of block `rank`'s partial sums.
__device__ __forceinline__ float2 partial_of(const float* own, int rank) {
  float2 value;
  if constexpr (SPLIT == 1) {
    value = *reinterpret_cast<const float2*>(own);
  } else {
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %2, %3;\n"
        "ld.shared::cluster.v2.f32 {%0, %1}, [remote];\n"
        "}"
        : "=f"(value.x), "=f"(value.y)
        : "r"(shared_address(own)), "r"(rank)
        : "memory");
  }
  return value;
}

// This block's share of the strip's results: the sums of all blocks, added in their order.
__device__ __forceinline__ void write_share(const Shared& shared, int rank, int strip, int first_token, int m,
                                            uint8_t* d) {
  constexpr int kPairs = TOKENS * kStrip / 2;
  const int begin = kPairs * rank / SPLIT, end = kPairs * (rank + 1) / SPLIT;
  for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += kMathThreads) {
    const int token = i / (kStrip / 2), row = i % (kStrip / 2) * 2, n = strip * kStrip + row;
    if (first_token + token >= m || n >= N) continue;
    float2 sum = {0, 0};
#pragma unroll
    for (int other = 0; other < SPLIT; ++other) {
      const float2 value = partial_of(shared.partial + token * kPartialPitch + row, other);
      sum.x += value.x;
      sum.y += value.y;
    }
    uint8_t* to = d + (static_cast<long long>(first_token + token) * N + n) * RESULT_BYTES;
    if constexpr (RESULT_BYTES == 4) {
      *reinterpret_cast<float2*>(to) = sum;
    } else {
      *reinterpret_cast<uint32_t*>(to) = to_bf16_pair(sum.x, sum.y);
    }
  }
}

// Grid: [strips * SPLIT, ceil(m / TOKENS)].
extern "C" __global__ void __cluster_dims__(SPLIT, 1, 1) __launch_bounds__(kThreads) narrow_gemm(
    const __grid_constant__ TensorMap a,         // [m, K] as bytes, boxes of TOKENS rows
    const __grid_constant__ TensorMap b,         // [N, K] as bytes, boxes of 64 rows
    const __grid_constant__ TensorMap a_scales,  // [kBlocksK, m], boxes [1, TOKENS]
    const float* b_scales,                       // [ceil(N / 128), kBlocksK]
    uint8_t* d,                                  // [m, N]
    int m) {
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == kMathThreads) {
    prefetch_map(&a);
    prefetch_map(&b);
    if constexpr (kScaled) prefetch_map(&a_scales);
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(&shared.full[s], 1);
      barrier_init(&shared.empty[s], kMathThreads / 32);
    }
    fence_barrier_init();
  }
  __syncthreads();

  const int strip = static_cast<int>(blockIdx.x) / SPLIT, rank = static_cast<int>(blockIdx.x) % SPLIT;
  const int first_token = static_cast<int>(blockIdx.y) * TOKENS;
  const Range range = range_of(rank);
  if (threadIdx.x >= kMathThreads) {
    if (is_elected()) fetch_strip(shared, range, strip, first_token, a, b, a_scales);
    __syncwarp();
  } else {
    float sum[TOKENS / 2];
    sum_strip(shared, range, strip, b_scales, sum);
    const int row = static_cast<int>(threadIdx.x) / 32 * 16 + static_cast<int>(threadIdx.x % 32) / 4;
    const int column = static_cast<int>(threadIdx.x % 4) * 2;
#pragma unroll
    for (int j = 0; j < TOKENS / 8; ++j) {
      float* at = shared.partial + (8 * j + column) * kPartialPitch + row;
      at[0] = sum[4 * j];
      at[kPartialPitch] = sum[4 * j + 1];
      at[8] = sum[4 * j + 2];
      at[kPartialPitch + 8] = sum[4 * j + 3];
    }
  }
  if constexpr (SPLIT > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  if (threadIdx.x < kMathThreads) write_share(shared, rank, strip, first_token, m, d);
  if constexpr (SPLIT > 1) cluster_meet();  // nobody leaves while others read its sums
}
