// Absorbed form: all heads of a query share one key per token, the cached row, and one value, its first latent_width
// numbers. A query is cut at fixed absolute positions into partitions that run in parallel and are merged in order.
//
// Where the heads fill a vector, scores have heads in lanes: each number of a key meets a column of the transposed
// queries. Fewer heads have the width of the key in lanes.
#include <bit>

#include "kernels/cpu/attention_kernels.h"

namespace plait::kernels::fast {
namespace {

constexpr int64_t kHeadGroup = 32;                 // heads that share one conversion of a tile to float32
constexpr int64_t kTokensAtOnce = 16;              // of a tile, converted and scored while they are in the cache
constexpr int64_t kPartitionTokens = 512;          // the least; a multiple of kKeyTileTokens
constexpr int64_t kMaxPartitions = 32;             // of one query; longer ones have longer partitions
constexpr int64_t kWaveFloats = int64_t{4} << 20;  // packed queries and partial results at once
static_assert(kPartitionTokens % kKeyTileTokens == 0 && kKeyTileTokens % kTokensAtOnce == 0);

// A function of the query's own position only.
int64_t partition_tokens(int64_t position) {
  int64_t tokens = kPartitionTokens;
  while (tokens * kMaxPartitions <= position) tokens *= 2;
  return tokens;
}

struct Query {
  const AttentionSpan* span = nullptr;
  int64_t token = 0;  // row of the step
  int64_t position = 0;
  int64_t first_partial = 0;  // of [partitions, groups]
  int64_t partitions() const { return position / partition_tokens(position) + 1; }
};

// One partition of one query for one group of heads. Its partial result lies at its own index.
struct Task {
  int64_t query = 0;  // of the wave
  int64_t group = 0;
  int64_t partition = 0;
};

class AbsorbedAttention {
 public:
  AbsorbedAttention(const Context& context, HeadRows q, const LatentCache& cache, float scale, HeadRows out)
      : context_(context),
        kernels_(attention_kernels()),
        q_(q),
        cache_(cache),
        scale_(scale),
        out_(out),
        key_width_(padded_width(cache.row_width())),
        key_stride_(padded_stride(cache.row_width())),
        value_width_(padded_width(cache.latent_width)),
        groups_((q.heads + kHeadGroup - 1) / kHeadGroup),
        group_heads_(std::min(q.heads, kHeadGroup)),
        group_lanes_(padded_width(group_heads_)),
        heads_in_lanes_(group_heads_ >= kernels_.lanes) {}

  // Runs as many of the queries as fit in one wave, and returns how many those were.
  size_t run_wave(std::span<Query> rest) {
    tasks_.clear();
    size_t count = 0;
    int64_t floats = 0;
    for (; count < rest.size(); ++count) {
      Query& query = rest[count];
      floats += groups_ * (query_floats() + query.partitions() * partial_floats());
      if (count > 0 && floats > kWaveFloats) break;
      query.first_partial = std::ssize(tasks_);
      for (int64_t partition = 0; partition < query.partitions(); ++partition)
        for (int64_t group = 0; group < groups_; ++group)
          tasks_.push_back({static_cast<int64_t>(count), group, partition});
    }
    wave_ = rest.first(count);
    Workspace& workspace = *context_.workspace;
    const int64_t packed = std::ssize(wave_) * groups_;
    queries_ = workspace.get_array<float>(kSlotQueries, packed * query_floats());
    partials_ = workspace.get_array<float>(kSlotPartials, std::ssize(tasks_) * partial_floats());
    scratch_ = workspace.get_array<float>(kSlotAttentionScratch, context_.pool->size() * scratch_floats());

    ThreadPool& pool = *context_.pool;
    pool.parallel_for(packed, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) pack_queries(i / groups_, i % groups_);
    });
    pool.parallel_for(std::ssize(tasks_), 1, [&](int64_t begin, int64_t end, int member) {
      for (int64_t i = begin; i < end; ++i) run_task(tasks_[i], partial(i), scratch_ + member * scratch_floats());
    });
    pool.parallel_for(std::ssize(wave_) * q_.heads, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) merge_head(wave_[i / q_.heads], i % q_.heads);
    });
    return count;
  }

 private:
  // What one task has seen, per head of its group.
  struct Partial {
    float* values;   // [group_heads, value_width]
    float* maximum;  // [group_lanes]
    float* sum;      // [group_lanes]
  };
  int64_t partial_floats() const { return group_heads_ * value_width_ + 2 * group_lanes_; }
  Partial partial(int64_t index) const {
    float* values = partials_ + index * partial_floats();
    float* maximum = values + group_heads_ * value_width_;
    return {values, maximum, maximum + group_lanes_};
  }
  // The queries of one group: [key_width, group_lanes] with heads in lanes, else [group_heads, key_stride].
  int64_t query_floats() const { return std::max(key_width_ * group_lanes_, group_heads_ * key_stride_); }
  float* packed_queries(int64_t query, int64_t group) const {
    return queries_ + (query * groups_ + group) * query_floats();
  }
  int64_t scratch_floats() const { return kKeyTileTokens * (key_stride_ + group_lanes_); }
  int64_t heads_of(int64_t group) const { return std::min(kHeadGroup, q_.heads - group * kHeadGroup); }

  // Scaled, padded with zeros.
  void pack_queries(int64_t query, int64_t group) const {
    float* to = packed_queries(query, group);
    std::fill_n(to, query_floats(), 0.0f);
    const int64_t head_step = heads_in_lanes_ ? 1 : key_stride_, step = heads_in_lanes_ ? group_lanes_ : 1;
    for (int64_t h = 0; h < heads_of(group); ++h) {
      const float* from = q_.at(wave_[query].token, group * kHeadGroup + h);
      for (int64_t i = 0; i < q_.width; ++i) to[h * head_step + i * step] = from[i] * scale_;
    }
  }

  void run_task(const Task& task, Partial result, float* scratch) const {
    const Query& query = wave_[task.query];
    const int64_t heads = heads_of(task.group);
    float* keys = scratch;                                // [kKeyTileTokens, key_stride]
    float* scores = keys + kKeyTileTokens * key_stride_;  // [kKeyTileTokens, group_lanes]
    std::fill_n(result.values, heads * value_width_, 0.0f);
    std::fill_n(result.maximum, group_lanes_, -std::numeric_limits<float>::infinity());
    std::fill_n(result.sum, group_lanes_, 0.0f);
    if (!heads_in_lanes_) std::fill_n(scores, kKeyTileTokens * group_lanes_, 0.0f);  // the lanes without a head

    const int64_t length = partition_tokens(query.position);
    const int64_t end = std::min((task.partition + 1) * length, query.position + 1);
    const std::byte* rows[2][kKeyTileTokens];  // of the tile in hand and of the next one
    const auto find_rows = [&](int64_t first, const std::byte** to) {
      const int64_t tokens = std::clamp<int64_t>(end - first, 0, kKeyTileTokens);
      cached_rows(cache_, query.span->pages, first, tokens, to);
      return tokens;
    };
    int64_t first = task.partition * length, tokens = find_rows(first, rows[0]);
    for (int parity = 0; tokens > 0; parity ^= 1) {
      const std::byte** next_rows = rows[parity ^ 1];
      const int64_t next_tokens = find_rows(first + tokens, next_rows);
      Prefetch prefetch = prefetch_during(heads * tokens, next_rows, next_tokens);
      for (int64_t j = 0; j < tokens; j += kTokensAtOnce)
        score_tokens(task, rows[parity] + j, std::min(kTokensAtOnce, tokens - j), keys + j * key_stride_,
                     scores + j * group_lanes_, prefetch);
      kernels_.softmax_columns({.scores = scores,
                                .score_stride = group_lanes_,
                                .rows = heads,
                                .tokens = tokens,
                                .maximum = result.maximum,
                                .sum = result.sum,
                                .values = result.values,
                                .value_stride = value_width_,
                                .value_width = value_width_});
      kernels_.product({.a = scores,
                        .a_stride = group_lanes_,
                        .a_transposed = true,
                        .rows = heads,
                        .b = keys,
                        .b_stride = key_stride_,
                        .depth = tokens,
                        .c = result.values,
                        .c_stride = value_width_,
                        .columns = value_width_,
                        .accumulate = true,
                        .prefetch = &prefetch});
      first += tokens;
      tokens = next_tokens;
    }
  }

  // The next tile, spread over the work on `pairs` (query, key) pairs of this one.
  Prefetch prefetch_during(int64_t pairs, const std::byte* const* rows, int64_t count) const {
    constexpr int64_t kStepMultiplyAdds = 256;  // about what a step of a product's loop does
    const int64_t row_bytes = cache_.row_width() * size_of(cache_.dtype);
    const int64_t steps = pairs * (key_width_ + value_width_) / kStepMultiplyAdds;
    const int64_t lines = std::max<int64_t>(count * (row_bytes + 63) / 64, 1);
    const auto interval = static_cast<uint64_t>(std::max<int64_t>(steps / lines, 1));
    return {.rows = rows,
            .row_count = count,
            .row_bytes = row_bytes,
            .interval_mask = static_cast<int64_t>(std::bit_floor(interval)) - 1};
  }

  // keys: [tokens, key_stride], scores: [tokens, group_lanes]
  void score_tokens(const Task& task, const std::byte* const* rows, int64_t tokens, float* keys, float* scores,
                    Prefetch& prefetch) const {
    for (int64_t j = 0; j < tokens; ++j)
      kernels_.load_row(rows[j], cache_.dtype, cache_.row_width(), keys + j * key_stride_, key_width_);
    const float* queries = packed_queries(task.query, task.group);
    if (heads_in_lanes_)
      kernels_.product({.a = keys,
                        .a_stride = key_stride_,
                        .rows = tokens,
                        .b = queries,
                        .b_stride = group_lanes_,
                        .depth = key_width_,
                        .c = scores,
                        .c_stride = group_lanes_,
                        .columns = padded_width(heads_of(task.group)),
                        .prefetch = &prefetch});
    else
      kernels_.dot({.q = queries,
                    .q_stride = key_stride_,
                    .rows = heads_of(task.group),
                    .keys = keys,
                    .key_stride = key_stride_,
                    .tokens = tokens,
                    .width = key_width_,
                    .scores = scores,
                    .score_stride = group_lanes_,
                    .prefetch = &prefetch});
  }

  void merge_head(const Query& query, int64_t head) const {
    const int64_t group = head / kHeadGroup, h = head % kHeadGroup;
    const int64_t first = query.first_partial + group;
    const Partial seen = partial(first);
    float* values = seen.values + h * value_width_;
    for (int64_t i = 1; i < query.partitions(); ++i) {
      const Partial next = partial(first + i * groups_);
      kernels_.merge(next.maximum[h], next.sum[h], next.values + h * value_width_, seen.maximum[h], seen.sum[h], values,
                     value_width_);
    }
    kernels_.finish(values, seen.sum[h], out_.at(query.token, head), out_.width);
  }

  const Context& context_;
  const AttentionKernels& kernels_;
  const HeadRows q_;
  const LatentCache& cache_;
  const float scale_;
  const HeadRows out_;
  const int64_t key_width_, key_stride_, value_width_;
  const int64_t groups_, group_heads_, group_lanes_;
  const bool heads_in_lanes_;
  // The wave in hand.
  std::span<const Query> wave_;
  std::vector<Task> tasks_;
  float* queries_ = nullptr;   // [queries, groups, query_floats]
  float* partials_ = nullptr;  // [tasks, partial_floats]
  float* scratch_ = nullptr;   // [threads, scratch_floats]
};

}  // namespace

void attend_absorbed(const Context& context, HeadRows q, const LatentCache& cache, std::span<const AttentionSpan> spans,
                     float scale, HeadRows out) {
  std::vector<Query> queries;
  for (const AttentionSpan& span : spans)
    for (int64_t i = 0; i < span.row_count; ++i)
      queries.push_back({.span = &span, .token = span.row_begin + i, .position = span.position(i)});
  AbsorbedAttention attention(context, q, cache, scale, out);
  for (std::span<Query> rest = queries; !rest.empty();) rest = rest.subspan(attention.run_wave(rest));
}

}  // namespace plait::kernels::fast
