// Absorbed form: all heads of a query share one key per token, the cached row, and one value, its first latent_width
// numbers. A query is cut at fixed absolute positions into partitions that run in parallel and are merged in order.
#include "base/assert.h"
#include "kernels/cpu/attention_kernels.h"

namespace plait::kernels::fast {
namespace {

constexpr int64_t kHeadGroup = 32;                 // heads that share one conversion of a tile to float32
constexpr int64_t kPartitionTokens = 512;          // the least; a multiple of kKeyTileTokens
constexpr int64_t kMaxPartitions = 32;             // of one query; longer ones have longer partitions
constexpr int64_t kWaveFloats = int64_t{4} << 20;  // partial results that are alive at once
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
  int64_t first_partial = 0;  // of head group 0
  int64_t partitions() const { return position / partition_tokens(position) + 1; }
};

// One partition of one query for one group of heads. Its partial result lies at its own index.
struct Task {
  const Query* query = nullptr;
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
        key_width_((cache.row_width() + kPad - 1) / kPad * kPad),
        key_stride_(padded_stride(cache.row_width())),
        value_width_((cache.latent_width + kPad - 1) / kPad * kPad),
        groups_((q.heads + kHeadGroup - 1) / kHeadGroup),
        group_heads_(std::min(q.heads, kHeadGroup)),
        partial_floats_(group_heads_ * (value_width_ + kPad)) {}

  // Runs as many of the queries as fit in one wave, and returns how many those were.
  size_t run_wave(std::span<Query> queries) {
    std::vector<Task> tasks;
    size_t count = 0;
    for (; count < queries.size(); ++count) {
      Query& query = queries[count];
      const int64_t more = groups_ * query.partitions();
      if (count > 0 && (std::ssize(tasks) + more) * partial_floats_ > kWaveFloats) break;
      query.first_partial = std::ssize(tasks);
      for (int64_t group = 0; group < groups_; ++group)
        for (int64_t partition = 0; partition < query.partitions(); ++partition)
          tasks.push_back({&query, group, partition});
    }
    partials_ = context_.workspace->get_array<float>(kSlotPartials, std::ssize(tasks) * partial_floats_);
    const int64_t scratch_floats = kKeyTileTokens * key_stride_ + group_heads_ * (key_stride_ + kKeyTileTokens);
    auto* scratch = context_.workspace->get_array<float>(kSlotAttentionScratch, context_.pool->size() * scratch_floats);
    context_.pool->parallel_for(std::ssize(tasks), 1, [&](int64_t begin, int64_t end, int member) {
      for (int64_t i = begin; i < end; ++i) run_task(tasks[i], partial(i), scratch + member * scratch_floats);
    });
    context_.pool->parallel_for(static_cast<int64_t>(count) * q_.heads, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) merge_head(queries[i / q_.heads], i % q_.heads);
    });
    return count;
  }

 private:
  // What one task has seen, per head of its group.
  struct Partial {
    float* values;   // [heads, value_width]
    float* maximum;  // [heads]
    float* sum;      // [heads]
  };
  Partial partial(int64_t index) const {
    float* begin = partials_ + index * partial_floats_;
    float* maximum = begin + group_heads_ * value_width_;
    return {begin, maximum, maximum + group_heads_};
  }

  void run_task(const Task& task, Partial result, float* scratch) const {
    const Query& query = *task.query;
    const int64_t first_head = task.group * kHeadGroup, heads = std::min(kHeadGroup, q_.heads - first_head);
    float* keys = scratch;                                 // [kKeyTileTokens, key_stride]
    float* queries = keys + kKeyTileTokens * key_stride_;  // [heads, key_stride]
    float* scores = queries + group_heads_ * key_stride_;  // [heads, kKeyTileTokens]
    for (int64_t h = 0; h < heads; ++h) {
      const float* from = q_.at(query.token, first_head + h);
      float* to = queries + h * key_stride_;
      std::transform(from, from + q_.width, to, [&](float value) { return value * scale_; });
      std::fill(to + q_.width, to + key_width_, 0.0f);
    }
    std::fill_n(result.values, heads * value_width_, 0.0f);
    std::fill_n(result.maximum, heads, -std::numeric_limits<float>::infinity());
    std::fill_n(result.sum, heads, 0.0f);

    const int64_t length = partition_tokens(query.position);
    const int64_t end = std::min((task.partition + 1) * length, query.position + 1);
    int32_t visible[kHeadGroup];
    for (int64_t first = task.partition * length; first < end; first += kKeyTileTokens) {
      const int64_t tokens = std::min(kKeyTileTokens, end - first);
      for (int64_t j = 0; j < tokens; ++j)
        kernels_.load_row(cached_row(cache_, query.span->pages, first + j), cache_.dtype, cache_.row_width(),
                          keys + j * key_stride_, key_width_);
      kernels_.dot({.q = queries,
                    .q_stride = key_stride_,
                    .rows = heads,
                    .keys = keys,
                    .key_stride = key_stride_,
                    .tokens = tokens,
                    .width = key_width_,
                    .scores = scores});
      std::fill_n(visible, heads, static_cast<int32_t>(tokens));
      kernels_.softmax({.scores = scores,
                        .rows = heads,
                        .visible = visible,
                        .maximum = result.maximum,
                        .sum = result.sum,
                        .sums_of_values = result.values,
                        .stride = value_width_,
                        .columns = value_width_});
      const std::byte* next_rows[kKeyTileTokens];
      const int64_t next_tokens = std::min(kKeyTileTokens, end - first - tokens);
      for (int64_t j = 0; next_tokens > 0 && j < tokens; ++j)
        next_rows[j] = cached_row(cache_, query.span->pages, first + tokens + std::min(j, next_tokens - 1));
      kernels_.product({.a = scores,
                        .a_stride = kKeyTileTokens,
                        .rows = heads,
                        .b = keys,
                        .b_stride = key_stride_,
                        .depth = tokens,
                        .c = result.values,
                        .c_stride = value_width_,
                        .columns = value_width_,
                        .accumulate = true,
                        .prefetch = next_rows,
                        .prefetch_bytes = next_tokens > 0 ? cache_.row_width() * size_of(cache_.dtype) : 0});
    }
  }

  void merge_head(const Query& query, int64_t head) const {
    const int64_t group = head / kHeadGroup, h = head % kHeadGroup;
    const int64_t first = query.first_partial + group * query.partitions();
    const Partial seen = partial(first);
    float* values = seen.values + h * value_width_;
    for (int64_t i = 1; i < query.partitions(); ++i) {
      const Partial next = partial(first + i);
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
  const int64_t groups_, group_heads_, partial_floats_;
  float* partials_ = nullptr;
};

}  // namespace

void attend_absorbed(const Context& context, HeadRows q, const LatentCache& cache, std::span<const AttentionSpan> spans,
                     float scale, HeadRows out) {
  std::vector<Query> queries;
  for (const AttentionSpan& span : spans)
    for (int64_t i = 0; i < span.row_count; ++i)
      queries.push_back({.span = &span, .token = span.row_begin + i, .position = span.first_position + i});
  AbsorbedAttention attention(context, q, cache, scale, out);
  for (std::span<Query> rest = queries; !rest.empty();) rest = rest.subspan(attention.run_wave(rest));
}

}  // namespace plait::kernels::fast
