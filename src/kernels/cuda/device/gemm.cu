// D = A * B^T for rows of tokens: A [rows, K], B [N, K] (a weight matrix per group), D [rows, N].
//
// FP8: both e4m3, a scale per row and 128 of K, a scale per 128x128 weights; every 128 of K are summed by the tensor
// cores, whose sums carry few bits, and added in float32 after scaling. BF16: summed by the tensor cores throughout.
//
// One warp of the last warpgroup fetches tiles; each other warpgroup multiplies 64 rows. Blocks stay and take one tile
// after the other, so that fetching for the next one goes on while results are written. Two blocks of a cluster may
// share the rows (two tiles side by side) or the weights (one below the other): each fetches half of what is shared,
// for both.
//
// Constants: ROWS (kDense, kContiguous, kMasked, kBatched), ELEMENT_BYTES (1: e4m3, 2: bfloat16), RESULT_BYTES (of D;
// 2: bfloat16, 4: float32), N, K, GROUPS, BLOCK_M (64 a warpgroup), BLOCK_N (a multiple of 16), WAVE_N (columns of one product;
// BLOCK_N if BF16), STAGES, SHARE (kNothing, kRows, kWeights), BAND (of tile rows that are walked through together),
// SHARED_BYTES. multiply() stands before this text: it depends on WAVE_N and ELEMENT_BYTES.

enum { kDense, kContiguous, kMasked, kBatched };
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

constexpr int kWaves = BLOCK_N / WAVE_N;
constexpr int kMathGroups = BLOCK_M / 64;
constexpr int kMathWarps = 4 * kMathGroups;
constexpr int kThreads = 128 * (kMathGroups + 1);

constexpr int kRowsBytes = BLOCK_M * kBlockBytes;
constexpr int kWeightsBytes = BLOCK_N * kBlockBytes;
constexpr int kScalesBytes = kScaled ? BLOCK_M * 4 : 0;
constexpr int kPass = BLOCK_N * RESULT_BYTES < 128 ? BLOCK_N : 128 / RESULT_BYTES;  // columns that are written at a time
// Bytes; an odd number of what a row stores at once, 16 bytes of bfloat16 or 32 of float32: no two rows meet in a bank.
constexpr int kResultPitch = kPass * RESULT_BYTES + 8 * RESULT_BYTES;

// Tiles of one part of K, what scales them, and the barriers that pass them on.
struct alignas(1024) Stage {
  uint8_t rows[kRowsBytes];
  uint8_t weights[kWeightsBytes];
  float scales[kScaled ? BLOCK_M : 1];
  float weight_scales[2];  // of the first columns of the tile, and of those from the next multiple of 128 on
  uint64_t full;
  uint64_t empty;
};

struct alignas(1024) Shared {
  Stage stages[STAGES];
  uint8_t results[BLOCK_M * kResultPitch];
};

static_assert(sizeof(Shared) == SHARED_BYTES, "the launch and the kernel disagree");

// A tile that crosses a multiple of 128 columns has two scales for its weights. Tiles begin at multiples of kRun
// columns, so runs of them have one scale.
constexpr bool kTwoScales = 128 % BLOCK_N != 0;
constexpr int kRun = BLOCK_N % 128 == 0 ? 128 : BLOCK_N % 64 == 0 ? 64 : BLOCK_N % 32 == 0 ? 32 : 16;

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
  // (none: nothing is read or written). kMasked: room for `m` rows a group, of which block_rows[group] exist. kBatched:
  // `m` rows in every group.
  __device__ Tiles(int m, const int* block_rows, const int* block_group)
      : m_(m), rows_(block_rows), group_(block_group), unit_(static_cast<int>(blockIdx.x) / kCluster) {}

  __device__ bool next(Tile& tile) {
    if constexpr (ROWS == kMasked) return next_masked(tile);
    if constexpr (ROWS == kBatched) return next_batched(tile);
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
  __device__ bool next_batched(Tile& tile) {
    const int blocks = (m_ + BLOCK_M - 1) / BLOCK_M, units = blocks * kUnitsN;
    if (unit_ >= GROUPS * units) return false;
    const int inside = unit_ % units, first = inside % blocks * BLOCK_M;
    tile = {.row = first, .rows = m_ - first, .column = column_of(inside / blocks), .group = unit_ / units};
    unit_ += static_cast<int>(gridDim.x) / kCluster;
    return true;
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
struct Turn {
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
template <bool IsShared, int Rows>
__device__ __forceinline__ void fetch(uint8_t* tile, const TensorMap* map, uint64_t* barrier, int column, int row) {
  if constexpr (IsShared) {
    constexpr int kHalf = Rows / 2;
    const int rank = static_cast<int>(rank_in_cluster());
    copy_box_to(tile + rank * kHalf * kBlockBytes, map, barrier, column, row + rank * kHalf, 3);
  } else {
    copy_box(tile, map, barrier, column, row);
  }
}

// One thread.
__device__ void fetch_tiles(Shared& shared, Tiles tiles, const TensorMap& a, const TensorMap& b,
                            const TensorMap& a_scales, const float* b_scales, int a_group_bytes) {
  Turn turn;
  Tile tile;
  while (tiles.next(tile)) {
    const int first_byte = ROWS == kBatched ? tile.group * a_group_bytes : 0;
    const int scale_row = min(tile.column / 128, kScaleRows - 1), last_k = kBlocksK - 1;
    const float* first = b_scales + (static_cast<long long>(tile.group) * kScaleRows + scale_row) * kBlocksK;
    const float* second = scale_row + 1 < kScaleRows ? first + kBlocksK : first;
    float scale0 = 0, scale1 = 0;
    if constexpr (kScaled) scale0 = __ldg(first), scale1 = __ldg(second);
#pragma unroll 1
    for (int k = 0; k < kBlocksK; ++k, turn.advance()) {
      Stage& stage = shared.stages[turn.index];
      barrier_wait(&stage.empty, turn.parity ^ 1);
      if constexpr (kScaled) {
        stage.weight_scales[0] = scale0;
        if constexpr (kTwoScales) stage.weight_scales[1] = scale1;
        // Read a stage ahead: nobody waits for them.
        scale0 = __ldg(first + min(k + 1, last_k));
        if constexpr (kTwoScales) scale1 = __ldg(second + min(k + 1, last_k));
      }
      barrier_arrive_expecting(&stage.full, kRowsBytes + kWeightsBytes + kScalesBytes);
      fetch<SHARE == kRows, BLOCK_M>(stage.rows, &a, &stage.full, first_byte + k * kBlockBytes, tile.row);
      fetch<SHARE == kWeights, BLOCK_N>(stage.weights, &b, &stage.full, k * kBlockBytes, tile.group * N + tile.column);
      if constexpr (kScaled) copy_box(stage.scales, &a_scales, &stage.full, tile.scale_column, tile.scale_row + k);
    }
  }
}

// The stage may be filled again, as far as this warp is concerned.
__device__ __forceinline__ void release(Stage& stage) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  if constexpr (kCluster == 1) {
    if (lane == 0) barrier_arrive(&stage.empty);
  } else {
    if (lane < kCluster) barrier_arrive_at(&stage.empty, static_cast<uint32_t>(lane));
  }
}

// Of a stage, for this thread: row lane/4 and eight rows below, under the first and the second scale of the weights.
struct Factors {
  float above[2], below[2];
};

// Reads stages in their order, for 64 rows. Products of a stage are begun, and go on while this thread does other
// things: between the products of two stages should stand little more than adding them up.
class Reader {
 public:
  __device__ __forceinline__ Reader(Shared& shared, Turn& turn, int group)
      : shared_(shared),
        turn_(turn),
        group_(group),
        row_(group * 64 + static_cast<int>(threadIdx.x % 128) / 32 * 16 + static_cast<int>(threadIdx.x % 32) / 4) {}

  // Waits until the next stage is there.
  __device__ __forceinline__ void wait() {
    Stage& stage = shared_.stages[turn_.index];
    barrier_wait(&stage.full, turn_.parity);
    a_ = matrix_descriptor(stage.rows + group_ * 64 * kBlockBytes);
    b_ = matrix_descriptor(stage.weights);
    if constexpr (kScaled) {
      const float above = stage.scales[row_], below = stage.scales[row_ + 8];
#pragma unroll
      for (int i = 0; i < (kTwoScales ? 2 : 1); ++i) {
        factors_.above[i] = above * stage.weight_scales[i];
        factors_.below[i] = below * stage.weight_scales[i];
      }
    }
    turn_.advance();
  }
  __device__ __forceinline__ const Factors& factors() const { return factors_; }

  // Begins the products of columns WAVE_N * wave and on of the stage that was waited for last. They are added to `sum`,
  // or if `First` they are all that is in it.
  template <bool First>
  __device__ __forceinline__ void begin(int wave, float (&sum)[WAVE_N / 2]) const {
    const uint64_t b = b_ + wave * (WAVE_N * kBlockBytes / 16);
#pragma unroll
    for (float& value : sum) hold(value);
    products_begin();
#pragma unroll
    for (int step = 0; step < kBlockBytes / 32; ++step) multiply(sum, a_ + 2 * step, b + 2 * step, !First || step > 0);
    products_commit();
  }
  // Waits for products that were begun, but the last `Outstanding`.
  template <int Outstanding>
  __device__ __forceinline__ void end(float (&sum)[WAVE_N / 2]) const {
    products_wait<Outstanding>();
#pragma unroll
    for (float& value : sum) hold(value);
  }
  // Gives back the oldest stage: all its products have ended.
  __device__ __forceinline__ void release_oldest() {
    release(shared_.stages[oldest_.index]);
    oldest_.advance();
  }

 private:
  Shared& shared_;
  Turn& turn_;
  Turn oldest_ = turn_;
  const int group_, row_;
  uint64_t a_ = 0, b_ = 0;
  Factors factors_ = {};
};

// Adds the products of a wave. Of columns 8j to 8j+7, lane l has rows l/4 and l/4+8 and columns 2(l%4) and one more.
// `first_runs`: of kRun columns of the tile before the next multiple of 128.
__device__ __forceinline__ void add(const float (&part)[WAVE_N / 2], const Factors& factors, int first_runs, int wave,
                                    float (&sum)[BLOCK_N / 2]) {
#pragma unroll
  for (int j = 0; j < WAVE_N / 8; ++j) {
    const bool is_first = !kTwoScales || (wave * WAVE_N + j * 8) / kRun < first_runs;
    const float above = is_first ? factors.above[0] : factors.above[1];
    const float below = is_first ? factors.below[0] : factors.below[1];
    float* to = sum + wave * (WAVE_N / 2) + 4 * j;
    to[0] += above * part[4 * j];
    to[1] += above * part[4 * j + 1];
    to[2] += below * part[4 * j + 2];
    to[3] += below * part[4 * j + 3];
  }
}

__device__ __forceinline__ void sum_scaled(Shared& shared, Turn& turn, const Tile& tile, int group,
                                           float (&sum)[BLOCK_N / 2]) {
  const int first_runs = BLOCK_N % 128 == 0 ? 1 : (128 - tile.column % 128) / kRun;
  Reader reader(shared, turn, group);
#pragma unroll
  for (float& value : sum) value = 0;
  float part[WAVE_N / 2];
  reader.wait();
#pragma unroll 1
  for (int k = 0; k < kBlocksK; ++k) {
    const Reader now = reader;
    now.begin<true>(0, part);
    if (k + 1 < kBlocksK) reader.wait();
#pragma unroll
    for (int wave = 0; wave + 1 < kWaves; ++wave) {
      now.end<0>(part);
      add(part, now.factors(), first_runs, wave, sum);
      now.begin<true>(wave + 1, part);
    }
    now.end<0>(part);
    reader.release_oldest();
    add(part, now.factors(), first_runs, kWaves - 1, sum);
  }
}

template <int Values>
__device__ __forceinline__ void sum_plain(Shared& shared, Turn& turn, int group, float (&sum)[Values]) {
  Reader reader(shared, turn, group);
  reader.wait();
  reader.begin<true>(0, sum);
#pragma unroll 1
  for (int k = 1; k < kBlocksK; ++k) {
    reader.wait();
    reader.begin<false>(0, sum);
    reader.end<1>(sum);
    reader.release_oldest();
  }
  reader.end<0>(sum);
  reader.release_oldest();
}

// Of a warp's 16 rows, `columns` from `sum` on -> `buffer`.
__device__ __forceinline__ void gather_rows(uint8_t* buffer, int columns, const float* sum) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  if constexpr (RESULT_BYTES == 4) {
    uint8_t* own = buffer + lane / 4 * kResultPitch + lane % 4 * 8;
#pragma unroll
    for (int j = 0; j < columns / 8; ++j) {
      *reinterpret_cast<float2*>(own + j * 32) = {sum[4 * j], sum[4 * j + 1]};
      *reinterpret_cast<float2*>(own + 8 * kResultPitch + j * 32) = {sum[4 * j + 2], sum[4 * j + 3]};
    }
  } else {
    uint8_t* own = buffer + (lane / 8 % 2 * 8 + lane % 8) * kResultPitch + lane / 16 * 16;
#pragma unroll
    for (int j = 0; j < columns / 16; ++j) {
      const float* v = sum + 8 * j;
      store_tiles(own + j * 32, to_bf16_pair(v[0], v[1]), to_bf16_pair(v[2], v[3]), to_bf16_pair(v[4], v[5]),
                  to_bf16_pair(v[6], v[7]));
    }
  }
}

template <int Bytes>
struct NumberOf {
  using Type = uint16_t;  // the bits of a bfloat16
};
template <>
struct NumberOf<4> {
  using Type = float;
};
using Number = NumberOf<RESULT_BYTES>::Type;

// Where results go.
struct Results {
  Number* d;
  int row_stride, group_stride;  // kBatched, in numbers

  // Row `row` of those from `first` on in the tile.
  __device__ __forceinline__ Number* at(const Tile& tile, int first, int row, int column) const {
    const long long result_row = static_cast<long long>(tile.row) + first + row;
    if constexpr (ROWS == kBatched)
      return d + result_row * row_stride + static_cast<long long>(tile.group) * group_stride + column;
    return d + result_row * N + column;
  }
};

// A warp's 16 rows, through shared memory so that lanes write 16 bytes side by side: kPass columns at a time.
__device__ __forceinline__ void write_rows(uint8_t* buffer, const Tile& tile, int first, const float* sum,
                                           Results results) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  constexpr int kEach = 16 / RESULT_BYTES;  // columns that a lane writes
#pragma unroll
  for (int begin = 0; begin < BLOCK_N; begin += kPass) {
    const int columns = begin + kPass <= BLOCK_N ? kPass : BLOCK_N - begin, vectors = columns / kEach;
    gather_rows(buffer, columns, sum + begin / 2);
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * vectors; i += 32) {
      const int row = i / vectors, column = tile.column + begin + i % vectors * kEach;
      if (first + row >= tile.rows || column >= N) continue;
      const uint4 value = *reinterpret_cast<const uint4*>(buffer + row * kResultPitch + i % vectors * 16);
      store_16_bytes(results.at(tile, first, row, column), value);
    }
    __syncwarp();
  }
}

template <bool IsScaled>
__device__ void multiply_tiles(Shared& shared, Tiles tiles, Results results) {
  const int group = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x) / 128, 0);
  const int first = static_cast<int>(threadIdx.x) / 32 * 16;  // row of this warp
  Turn turn;
  Tile tile;
  while (tiles.next(tile)) {
    float sum[IsScaled ? BLOCK_N / 2 : WAVE_N / 2];
    if constexpr (IsScaled) {
      sum_scaled(shared, turn, tile, group, sum);
    } else {
      sum_plain(shared, turn, group, sum);
    }
    write_rows(shared.results + first * kResultPitch, tile, first, sum, results);
  }
}

// Grid: a multiple of the cluster's width, at most as many blocks as run at once.
extern "C" __global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1) gemm(const __grid_constant__ TensorMap a,         // [rows, K] as bytes, boxes of BLOCK_M rows (kRows: half)
     const __grid_constant__ TensorMap b,         // [GROUPS * N, K] as bytes, boxes of BLOCK_N rows (kWeights: half)
     const __grid_constant__ TensorMap a_scales,  // [kBlocksK, rows] (kMasked: [GROUPS * kBlocksK, m]), boxes [1, BLOCK_M]
     const float* b_scales,                       // [GROUPS, kScaleRows, kBlocksK]
     Number* d,                                   // [rows, N]
     int m, const int* block_rows, const int* block_group,
     int a_group_bytes, int d_row_stride, int d_group_stride) {  // kBatched
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    prefetch_map(&a);
    prefetch_map(&b);
    if constexpr (kScaled) prefetch_map(&a_scales);
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(&shared.stages[s].full, 1);
      barrier_init(&shared.stages[s].empty, kCluster * kMathWarps);
    }
    fence_barrier_init();
  }
  if constexpr (kCluster > 1) {
    cluster_meet();
  } else {
    __syncthreads();
  }

  const Tiles tiles(m, block_rows, block_group);
  if (threadIdx.x >= kMathGroups * 128) {
    if constexpr (kMathGroups == 2) give_registers<40>();
    if (threadIdx.x < kMathGroups * 128 + 32 && is_elected()) fetch_tiles(shared, tiles, a, b, a_scales, b_scales, a_group_bytes);
    __syncwarp();
  } else {
    if constexpr (kMathGroups == 2) take_registers<232>();
    multiply_tiles<kScaled>(shared, tiles, Results{d, d_row_stride, d_group_stride});
  }
  // Nobody leaves while the other block of its cluster may still write to it.
  if constexpr (kCluster > 1) cluster_meet();
}
