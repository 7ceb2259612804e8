// Absorbed form: all heads of a query share one key per token, the cached row, and one value, its first latent_width
// numbers. A query is cut at fixed absolute positions into partitions that run in parallel and are merged in order.
#include "kernels/cpu/attention_kernels.h"

namespace plait::kernels::fast {
namespace {

constexpr int64_t kPartitionTokens = 512;          // the least; a multiple of kKeyTileTokens
constexpr int64_t kMaxPartitions = 32;             // of one query; longer ones have longer partitions
constexpr int64_t kWaveFloats = int64_t{4} << 20;  // packed queries and partial results at once
constexpr int64_t kMaxRun = 8;                     // tasks that a thread takes at once
static_assert(kPartitionTokens % kKeyTileTokens == 0);

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

// Up to kKeyTileTokens cached rows, the last one again and again from `tokens` on.
struct Tile {
  int64_t tokens = 0;
  const std::byte* rows[kKeyTileTokens];
};

class AbsorbedAttention {
 public:
  AbsorbedAttention(const Context& context, HeadRows q, const LatentCache& cache, float scale, HeadRows out)
      : context_(context),
        kernels_(absorbed_kernels()),
        q_(q),
        cache_(cache),
        scale_(scale),
        out_(out),
        key_width_(split_width(cache.row_width())),
        value_width_(split_width(cache.latent_width)),
        groups_((q.heads + kMaxTileHeads - 1) / kMaxTileHeads),
        group_heads_(std::min(q.heads, kMaxTileHeads)),
        value_stride_(group_heads_ * 2 * kernels_.lanes) {}

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
    if (rows_need_padding())
      staging_ = workspace.get_array<std::byte>(kSlotAttentionScratch, context_.pool->size() * staging_bytes());

    ThreadPool& pool = *context_.pool;
    pool.parallel_for(packed, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) pack_queries(i / groups_, i % groups_);
    });
    // Runs of tasks, because the first tile of a run has not been fetched when its turn comes.
    const int64_t run = std::clamp<int64_t>(std::ssize(tasks_) / (8 * pool.size()), 1, kMaxRun);
    pool.parallel_for(std::ssize(tasks_), run,
                      [&](int64_t begin, int64_t end, int member) { run_tasks(begin, end, member); });
    pool.parallel_for(std::ssize(wave_) * q_.heads, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) merge_head(wave_[i / q_.heads], i % q_.heads);
    });
    return count;
  }

 private:
  int64_t split_width(int64_t width) const {
    const int64_t pair = 2 * kernels_.lanes;
    return (width + pair - 1) / pair * pair;
  }

  // What one task has seen of its group: values as in AbsorbedTile, maximum and sum.
  struct Partial {
    float* values;
    float* maximum;  // [kMaxTileHeads]
    float* sum;      // [kMaxTileHeads]
  };
  int64_t value_floats() const { return value_width_ * group_heads_; }
  int64_t partial_floats() const { return value_floats() + 2 * kMaxTileHeads; }
  Partial partial(int64_t index) const {
    float* values = partials_ + index * partial_floats();
    float* maximum = values + value_floats();
    return {values, maximum, maximum + kMaxTileHeads};
  }
  // The queries of one group, in the layout of AbsorbedTile.
  int64_t query_floats() const {
    return (group_heads_ + kernels_.lanes - 1) / kernels_.lanes * kernels_.lanes * key_width_;
  }
  float* packed_queries(int64_t query, int64_t group) const {
    return queries_ + (query * groups_ + group) * query_floats();
  }
  int64_t heads_of(int64_t group) const { return std::min(kMaxTileHeads, q_.heads - group * kMaxTileHeads); }

  void pack_queries(int64_t query, int64_t group) const {
    float* packed = packed_queries(query, group);
    std::fill_n(packed, query_floats(), 0.0f);
    const int64_t lanes = kernels_.lanes;
    for (int64_t h = 0; h < heads_of(group); ++h) {
      float* to = packed + h / lanes * lanes * key_width_ + h % 4 * lanes + h % lanes / 4 * 4;
      kernels_.pack_query(q_.at(wave_[query].token, group * kMaxTileHeads + h), q_.width, scale_, to);
    }
  }

  void run_tasks(int64_t begin, int64_t end, int member) const {
    Tile tiles[2];  // in hand and next
    int parity = 0;
    find_tile(tasks_[begin], first_token(tasks_[begin]), tiles[0]);
    for (int64_t i = begin; i < end; ++i) {
      const Task& task = tasks_[i];
      const Partial result = partial(i);
      std::fill_n(result.values, value_floats(), 0.0f);
      std::fill_n(result.maximum, kMaxTileHeads, -std::numeric_limits<float>::infinity());
      std::fill_n(result.sum, kMaxTileHeads, 0.0f);
      for (int64_t first = first_token(task); first < end_token(task); first += kKeyTileTokens, parity ^= 1) {
        Tile& next = tiles[parity ^ 1];
        if (first + kKeyTileTokens < end_token(task))
          find_tile(task, first + kKeyTileTokens, next);
        else if (i + 1 < end)
          find_tile(tasks_[i + 1], first_token(tasks_[i + 1]), next);
        else
          next = tiles[parity];
        attend(task, tiles[parity], next, result, member);
      }
    }
  }

  int64_t first_token(const Task& task) const { return task.partition * partition_tokens(wave_[task.query].position); }
  int64_t end_token(const Task& task) const {
    const int64_t position = wave_[task.query].position;
    return std::min((task.partition + 1) * partition_tokens(position), position + 1);
  }
  void find_tile(const Task& task, int64_t first, Tile& tile) const {
    tile.tokens = std::min(end_token(task) - first, kKeyTileTokens);
    cached_rows(cache_, wave_[task.query].span->pages, first, tile.tokens, tile.rows);
    std::fill(tile.rows + tile.tokens, std::end(tile.rows), tile.rows[tile.tokens - 1]);
  }

  void attend(const Task& task, Tile& tile, const Tile& next, const Partial& result, int member) const {
    if (rows_need_padding()) pad_rows(tile, staging_ + member * staging_bytes());
    kernels_.attend({.rows = tile.rows,
                     .next_rows = next.rows,
                     .dtype = cache_.dtype,
                     .tokens = tile.tokens,
                     .heads = heads_of(task.group),
                     .key_width = key_width_,
                     .value_width = value_width_,
                     .queries = packed_queries(task.query, task.group),
                     .values = result.values,
                     .value_stride = value_stride_,
                     .maximum = result.maximum,
                     .sum = result.sum});
  }

  // The kernels read whole pairs of vectors; rows of another width are copied, with zeros after them.
  bool rows_need_padding() const { return key_width_ != cache_.row_width(); }
  int64_t padded_row_bytes() const { return key_width_ * size_of(cache_.dtype); }
  int64_t staging_bytes() const { return kKeyTileTokens * padded_row_bytes(); }
  void pad_rows(Tile& tile, std::byte* staging) const {
    const int64_t row_bytes = cache_.row_width() * size_of(cache_.dtype);
    for (int64_t t = 0; t < tile.tokens; ++t) {
      std::byte* to = staging + t * padded_row_bytes();
      std::copy_n(tile.rows[t], row_bytes, to);
      std::fill(to + row_bytes, to + padded_row_bytes(), std::byte{0});
      tile.rows[t] = to;
    }
    std::fill(tile.rows + tile.tokens, std::end(tile.rows), tile.rows[tile.tokens - 1]);
  }

  void merge_head(const Query& query, int64_t head) const {
    const int64_t group = head / kMaxTileHeads, h = head % kMaxTileHeads;
    const int64_t first = query.first_partial + group;
    const auto sum_of = [&](int64_t partition) -> AbsorbedSum {
      const Partial of_group = partial(first + partition * groups_);
      return {of_group.values + h * 2 * kernels_.lanes, value_stride_, of_group.maximum + h, of_group.sum + h};
    };
    const AbsorbedSum seen = sum_of(0);
    for (int64_t i = 1; i < query.partitions(); ++i) kernels_.merge(sum_of(i), seen, value_width_);
    kernels_.finish(seen, out_.at(query.token, head), out_.width);
  }

  const Context& context_;
  const AbsorbedKernels& kernels_;
  const HeadRows q_;
  const LatentCache& cache_;
  const float scale_;
  const HeadRows out_;
  const int64_t key_width_, value_width_;
  const int64_t groups_, group_heads_, value_stride_;
  // The wave in hand.
  std::span<const Query> wave_;
  std::vector<Task> tasks_;
  float* queries_ = nullptr;      // [queries, groups, query_floats]
  float* partials_ = nullptr;     // [tasks, partial_floats]
  std::byte* staging_ = nullptr;  // [threads, staging_bytes]
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
