// D = A * B^T for rows of tokens: A [rows, K], B [N, K] (a weight matrix per group), D [rows, N] in bfloat16.
//
// FP8: both e4m3, a scale per row and 128 of K, a scale per 128x128 weights; every 128 of K are summed by the tensor
// cores, whose sums carry few bits, and added in float32 after scaling. BF16: summed by the tensor cores throughout.
//
// One warp of the last warpgroup fetches tiles; each other warpgroup multiplies 64 rows. Blocks stay and take one tile
// after the other, so that fetching for the next one goes on while results are written. Two blocks of a cluster may
// share the rows (two tiles side by side) or the weights (one below the other): each fetches half of what is shared,
// for both.
//
// Constants: ROWS (kDense, kContiguous, kMasked), ELEMENT_BYTES (1: e4m3, 2: bfloat16), N, K, GROUPS, BLOCK_M (64 a
// warpgroup), BLOCK_N (a multiple of 16), STAGES, SHARE (kNothing, kRows, kWeights), BAND (of tile rows that are
// walked through together), SHARED_BYTES. multiply() stands before this text: it depends on BLOCK_N and ELEMENT_BYTES.

enum { kDense, kContiguous, kMasked };
enum { kNothing, kRows, kWeights };

constexpr bool kScaled = ELEMENT_BYTES == 1;
constexpr int kBlockBytes = 128;  // of K in a stage
constexpr int kBlockK = kBlockBytes / ELEMENT_BYTES;
constexpr int kBlocksK = (K + kBlockK - 1) / kBlockK;
constexpr int kScaleRows = (N + 127) / 128;  // of a weight matrix

constexpr int kCluster = SHARE == kNothing ? 1 : 2;
constexpr int kUnitM = SHARE == kWeights ? 2 : 1;  // tiles of a cluster
constexpr int kUnitN = SHARE == kRows ? 2 : 1;
constexpr int kUnitsN = (N + BLOCK_N * kUnitN - 1) / (BLOCK_N * kUnitN);

constexpr int kMathGroups = BLOCK_M / 64;
constexpr int kMathWarps = 4 * kMathGroups;
constexpr int kThreads = 128 * (kMathGroups + 1);

constexpr int kRowsBytes = BLOCK_M * kBlockBytes;
constexpr int kWeightsBytes = BLOCK_N * kBlockBytes;
constexpr int kScalesBytes = kScaled ? BLOCK_M * 4 : 0;
constexpr int kResultPitch = BLOCK_N * 2 + 16;  // bytes; an odd number of 16: no two rows meet in a bank

struct alignas(1024) Shared {
  uint8_t rows[STAGES][kRowsBytes];
  uint8_t weights[STAGES][kWeightsBytes];
  uint8_t results[BLOCK_M * kResultPitch];
  float scales[STAGES][kScaled ? BLOCK_M : 1];
  uint64_t full[STAGES];
  uint64_t empty[STAGES];
};

static_assert(sizeof(Shared) == SHARED_BYTES, "the launch and the kernel disagree");

struct Tile {
  int row;     // in A and D
  int rows;    // of these BLOCK_M that exist
  int column;  // in D
  int group;
  int scale_column;  // in the rows' scales, and
  int scale_row;     // the first of its kBlocksK rows there
};

// Deals tiles out to clusters, the same way in every warp.
class Tiles {
 public:
  // kDense: `m` rows. kContiguous: `m` rows, block i of BLOCK_M belongs to block_group[i] and has block_rows[i] rows
  // (none: nothing is read or written). kMasked: room for `m` rows a group, of which block_rows[group] exist.
  __device__ Tiles(int m, const int* block_rows, const int* block_group)
      : m_(m), rows_(block_rows), group_(block_group), unit_(static_cast<int>(blockIdx.x) / kCluster) {}

  __device__ bool next(Tile& tile) {
    if constexpr (ROWS == kMasked) return next_masked(tile);
    const int units_m = (m_ + BLOCK_M * kUnitM - 1) / (BLOCK_M * kUnitM);
    for (; unit_ < units_m * kUnitsN; unit_ += static_cast<int>(gridDim.x) / kCluster) {
      const int band = unit_ / (BAND * kUnitsN), inside = unit_ % (BAND * kUnitsN);
      const int height = min(BAND, units_m - band * BAND);
      const int block = (band * BAND + inside % height) * kUnitM + (SHARE == kWeights ? rank_in_cluster() : 0);
      tile.row = block * BLOCK_M;
      tile.rows = m_ - tile.row;
      tile.group = 0;
      if constexpr (ROWS == kContiguous) {
        tile.rows = rows_[block];
        tile.group = group_[block];
        if (tile.rows == 0) continue;
      }
      tile.column = column_of(inside / height);
      tile.scale_column = tile.row;
      tile.scale_row = 0;
      unit_ += static_cast<int>(gridDim.x) / kCluster;
      return true;
    }
    return false;
  }

 private:
  __device__ bool next_masked(Tile& tile) {
    for (; at_ < GROUPS; ++at_) {
      const int blocks = (rows_[at_] + BLOCK_M - 1) / BLOCK_M;
      const int inside = unit_ - before_;
      if (inside < blocks * kUnitsN) {
        const int first = inside % blocks * BLOCK_M;
        tile.row = at_ * m_ + first;
        tile.rows = rows_[at_] - first;
        tile.column = column_of(inside / blocks);
        tile.group = at_;
        tile.scale_column = first;
        tile.scale_row = at_ * kBlocksK;
        unit_ += static_cast<int>(gridDim.x) / kCluster;
        return true;
      }
      before_ += blocks * kUnitsN;
    }
    return false;
  }
  __device__ static int column_of(int unit) {
    return (unit * kUnitN + (SHARE == kRows ? static_cast<int>(rank_in_cluster()) : 0)) * BLOCK_N;
  }

  int m_;
  const int* rows_;
  const int* group_;
  int unit_;
  int at_ = 0;      // kMasked: group, and
  int before_ = 0;  // units of those before it
};

// A place in the ring of stages.
struct Stage {
  int index = 0;
  uint32_t parity = 0;

  __device__ void advance() {
    if (++index == STAGES) {
      index = 0;
      parity ^= 1;
    }
  }
};

// The part of a tile that this block fetches: all, or its half for both.
template <bool Shared_, int Rows>
__device__ __forceinline__ void fetch(uint8_t* tile, const TensorMap* map, uint64_t* barrier, int column, int row) {
  if constexpr (Shared_) {
    constexpr int kHalf = Rows / 2;
    const int rank = static_cast<int>(rank_in_cluster());
    copy_box_to(tile + rank * kHalf * kBlockBytes, map, barrier, column, row + rank * kHalf, 3);
  } else {
    copy_box(tile, map, barrier, column, row);
  }
}

__device__ void fetch_tiles(Shared& shared, Tiles tiles, const TensorMap& a, const TensorMap& b,
                            const TensorMap& a_scales) {
  Stage stage;
  Tile tile;
  while (tiles.next(tile)) {
#pragma unroll 1
    for (int k = 0; k < kBlocksK; ++k, stage.advance()) {
      const int s = stage.index;
      uint64_t* full = &shared.full[s];
      barrier_wait(&shared.empty[s], stage.parity ^ 1);
      barrier_arrive_expecting(full, kRowsBytes + kWeightsBytes + kScalesBytes);
      fetch<SHARE == kRows, BLOCK_M>(shared.rows[s], &a, full, k * kBlockBytes, tile.row);
      fetch<SHARE == kWeights, BLOCK_N>(shared.weights[s], &b, full, k * kBlockBytes, tile.group * N + tile.column);
      if constexpr (kScaled) copy_box(shared.scales[s], &a_scales, full, tile.scale_column, tile.scale_row + k);
    }
  }
}

// Scales of the weights under a tile: one for every 128 columns. Which of two holds for eight columns is known when
// tiles begin at a multiple of 128 or lie within it.
struct WeightScales {
  static constexpr bool kTwo = 128 % BLOCK_N != 0;

  const float* first;
  const float* second;
  int of_first;  // groups of eight columns

  __device__ WeightScales(const float* scales, const Tile& tile) {
    const int row = min(tile.column / 128, kScaleRows - 1);
    const float* matrix = scales + static_cast<long long>(tile.group) * kScaleRows * kBlocksK;
    first = matrix + row * kBlocksK;
    second = matrix + min(row + 1, kScaleRows - 1) * kBlocksK;
    of_first = (128 - tile.column % 128) / 8;
  }
};

__device__ __forceinline__ void release(Shared& shared, int stage) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  if constexpr (kCluster == 1) {
    if (lane == 0) barrier_arrive(&shared.empty[stage]);
  } else {
    if (lane < kCluster) barrier_arrive_at(&shared.empty[stage], static_cast<uint32_t>(lane));
  }
}

// 64 rows of a tile into `sum`: of columns 8j to 8j+7, lane l has rows l/4 and l/4+8 and columns 2(l%4) and one more.
__device__ __forceinline__ void sum_scaled(Shared& shared, Stage& stage, const Tile& tile, const float* b_scales,
                                           int group, float (&sum)[BLOCK_N / 2]) {
  const int row = group * 64 + static_cast<int>(threadIdx.x % 128) / 32 * 16 + static_cast<int>(threadIdx.x % 32) / 4;
  const WeightScales scales(b_scales, tile);
  float part[BLOCK_N / 2];
  for (int k = 0; k < kBlocksK; ++k, stage.advance()) {
    const int s = stage.index;
    const float b0 = __ldg(scales.first + k);
    const float b1 = WeightScales::kTwo ? __ldg(scales.second + k) : b0;
    barrier_wait(&shared.full[s], stage.parity);
    const float above = shared.scales[s][row], below = shared.scales[s][row + 8];

    const uint64_t a = matrix_descriptor(shared.rows[s] + group * 64 * kBlockBytes);
    const uint64_t b = matrix_descriptor(shared.weights[s]);
#pragma unroll
    for (float& value : part) hold(value);
    products_begin();
#pragma unroll
    for (int step = 0; step < kBlockBytes / 32; ++step) multiply(part, a + 2 * step, b + 2 * step, step > 0);
    products_commit();
#pragma unroll
    for (float& value : part) hold(value);
    products_wait<0>();
    release(shared, s);

    const float above0 = above * b0, below0 = below * b0, above1 = above * b1, below1 = below * b1;
#pragma unroll
    for (int j = 0; j < BLOCK_N / 8; ++j) {
      const bool is_first = !WeightScales::kTwo || j < scales.of_first;
      const float upper = is_first ? above0 : above1, lower = is_first ? below0 : below1;
      sum[4 * j] += upper * part[4 * j];
      sum[4 * j + 1] += upper * part[4 * j + 1];
      sum[4 * j + 2] += lower * part[4 * j + 2];
      sum[4 * j + 3] += lower * part[4 * j + 3];
    }
  }
}

__device__ __forceinline__ void sum_plain(Shared& shared, Stage& stage, int group, float (&sum)[BLOCK_N / 2]) {
  int previous = -1;
  for (int k = 0; k < kBlocksK; ++k, stage.advance()) {
    const int s = stage.index;
    barrier_wait(&shared.full[s], stage.parity);
    const uint64_t a = matrix_descriptor(shared.rows[s] + group * 64 * kBlockBytes);
    const uint64_t b = matrix_descriptor(shared.weights[s]);
#pragma unroll
    for (float& value : sum) hold(value);
    products_begin();
#pragma unroll
    for (int step = 0; step < kBlockBytes / 32; ++step) multiply(sum, a + 2 * step, b + 2 * step, k > 0 || step > 0);
    products_commit();
#pragma unroll
    for (float& value : sum) hold(value);
    products_wait<1>();
    if (previous >= 0) release(shared, previous);
    previous = s;
  }
  products_wait<0>();
#pragma unroll
  for (float& value : sum) hold(value);
  release(shared, previous);
}

// A warp's 16 rows, through shared memory so that lanes write 16 bytes side by side.
__device__ __forceinline__ void write_rows(uint8_t* buffer, const Tile& tile, int first, const float (&sum)[BLOCK_N / 2],
                                           uint16_t* d) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  uint8_t* own = buffer + (lane / 8 % 2 * 8 + lane % 8) * kResultPitch + lane / 16 * 16;
#pragma unroll
  for (int j = 0; j < BLOCK_N / 16; ++j) {
    const float* v = sum + 8 * j;
    store_tiles(own + j * 32, to_bf16_pair(v[0], v[1]), to_bf16_pair(v[2], v[3]), to_bf16_pair(v[4], v[5]),
                to_bf16_pair(v[6], v[7]));
  }
  __syncwarp();
  constexpr int kVectors = BLOCK_N / 8;  // of a row
#pragma unroll 4
  for (int i = lane; i < 16 * kVectors; i += 32) {
    const int row = i / kVectors, column = tile.column + i % kVectors * 8;
    if (first + row >= tile.rows || column >= N) continue;
    const uint4 value = *reinterpret_cast<const uint4*>(buffer + row * kResultPitch + i % kVectors * 16);
    store_16_bytes(d + (static_cast<long long>(tile.row) + first + row) * N + column, value);
  }
  __syncwarp();
}

__device__ void multiply_tiles(Shared& shared, Tiles tiles, const float* b_scales, uint16_t* d) {
  const int group = static_cast<int>(threadIdx.x) / 128;
  const int first = static_cast<int>(threadIdx.x) / 32 * 16;  // row of this warp
  Stage stage;
  Tile tile;
  while (tiles.next(tile)) {
    float sum[BLOCK_N / 2];
    if constexpr (kScaled) {
#pragma unroll
      for (float& value : sum) value = 0;
      sum_scaled(shared, stage, tile, b_scales, group, sum);
    } else {
      sum_plain(shared, stage, group, sum);
    }
    write_rows(shared.results + first * kResultPitch, tile, first, sum, d);
  }
}

// Grid: a multiple of the cluster's width, at most as many blocks as run at once.
extern "C" __global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1) gemm(const __grid_constant__ TensorMap a,         // [rows, K] as bytes, boxes of BLOCK_M rows (kRows: half)
     const __grid_constant__ TensorMap b,         // [GROUPS * N, K] as bytes, boxes of BLOCK_N rows (kWeights: half)
     const __grid_constant__ TensorMap a_scales,  // [kBlocksK, rows] (kMasked: [GROUPS * kBlocksK, m]), boxes [1, BLOCK_M]
     const float* b_scales,                       // [GROUPS, kScaleRows, kBlocksK]
     uint16_t* d,                                 // [rows, N]
     int m, const int* block_rows, const int* block_group) {
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    prefetch_map(&a);
    prefetch_map(&b);
    if constexpr (kScaled) prefetch_map(&a_scales);
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(&shared.full[s], 1);
      barrier_init(&shared.empty[s], kCluster * kMathWarps);
    }
    fence_barrier_init();
  }
  if constexpr (kCluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }

  const Tiles tiles(m, block_rows, block_group);
  if (threadIdx.x >= kMathGroups * 128) {
    if constexpr (kMathGroups == 2) give_registers<40>();
    if (threadIdx.x == kMathGroups * 128) fetch_tiles(shared, tiles, a, b, a_scales);
    __syncwarp();
  } else {
    if constexpr (kMathGroups == 2) take_registers<232>();
    multiply_tiles(shared, tiles, b_scales, d);
  }
  // Nobody leaves while the other block of its cluster may still write to it.
  if constexpr (kCluster > 1) cluster_sync();
}
