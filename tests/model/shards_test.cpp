// Shards of a model against the whole of it: stages that divide heads, widths, experts or the vocabulary add up, and
// pipeline stages follow each other. Ranks take turns on one thread; what a communicator would add is added here.
#include <gtest/gtest.h>

#include "tests/model/goldens.h"
#include "tests/model/model_runner.h"
#include "tests/model/random_checkpoint.h"

namespace plait::testing {
namespace {

// How many parts of each kind.
struct Division {
  int64_t heads = 1, dense = 1, shared = 1, experts = 1, expert_width = 1, embedding = 1, head = 1, stages = 1;

  // Ranks of one pipeline stage; parts repeat where a kind has fewer.
  int64_t ranks() const { return std::max({heads, dense, shared, experts * expert_width, embedding, head}); }
  ModelShard shard(int64_t stage, int64_t rank, int64_t layers) const {
    const auto part = [&](int64_t count) { return ShardPart{rank % count, count}; };
    ModelShard shard;
    const Range own = ShardPart{stage, stages}.of(layers);
    shard.layers = {own.begin, stage + 1 == stages ? std::numeric_limits<int64_t>::max() : own.end};
    shard.heads = part(heads);
    shard.dense_width = part(dense);
    shard.shared_width = part(shared);
    shard.experts = {rank / expert_width % experts, experts};
    shard.expert_width = part(expert_width);
    shard.embedding = part(embedding);
    shard.head = part(head);
    return shard;
  }
};

using Values = std::vector<float>;  // [rows, cols]

// The ranks of one pipeline stage. Every rank holds all rows; owed sums are paid at once.
class Stage {
 public:
  Stage(const ModelConfig& config, const TensorSet& weights, const ModelOptions& options, const Division& division,
        int64_t index)
      : config_(config), division_(division) {
    for (int64_t rank = 0; rank < division.ranks(); ++rank) {
      ModelOptions own = options;
      own.shard = division.shard(index, rank, config.num_hidden_layers);
      ranks_.push_back(std::make_unique<ModelRunner>(config, weights, own));
    }
    layers_ = division.shard(index, 0, config.num_hidden_layers).layers_of(config.num_hidden_layers);
    is_first_ = index == 0;
    is_last_ = index + 1 == division.stages;
  }

  // In: the residual after the stage before, empty for the first. Out: the residual, or the logits of the last.
  Values run(const Step& step, Values residual) {
    const int64_t rows = step.rows(), hidden = config_.hidden_size;
    for (const auto& rank : ranks_) rank->model().begin_step(step, {});
    if (is_first_)
      residual = sum(division_.embedding, rows, hidden,
                     [&](ModelRunner& rank, Rows y) { rank.model().embed(rank.context(), step.token_ids, y); });
    const Rows residual_rows(residual.data(), rows, hidden);
    Values normed(residual.size());
    const Rows normed_rows(normed.data(), rows, hidden);
    ModelRunner& first = *ranks_.front();
    for (int64_t layer = layers_.begin; layer < layers_.end; ++layer) {
      first.model().norm(first.context(), NormPlace::kAttention, layer, residual_rows, normed_rows);
      Values delta = sum(division_.heads, rows, hidden, [&](ModelRunner& rank, Rows y) {
        Values projected(rows * rank.model().projection_width());
        const Rows projected_rows(projected.data(), rows, rank.model().projection_width());
        rank.model().project(rank.context(), layer, normed_rows, projected_rows);
        rank.model().attention(rank.context(), layer, rank.kv(), projected_rows, {}, y);
      });
      first.model().add_norm(first.context(), NormPlace::kFeedForward, layer, ConstRows(delta.data(), rows, hidden),
                             residual_rows, normed_rows);
      delta = feed_forward(layer, normed_rows);
      for (size_t i = 0; i < residual.size(); ++i) residual[i] += delta[i];
    }
    if (!is_last_) return residual;
    first.model().norm(first.context(), NormPlace::kHead, -1, residual_rows, normed_rows);
    Values logits(rows * config_.vocab_size);
    for (int64_t part = 0; part < division_.head; ++part) {
      const Range ids = ShardPart{part, division_.head}.of(config_.vocab_size);
      const Rows own = Rows(logits.data(), rows, config_.vocab_size).slice_cols(ids.begin, ids.size());
      ranks_[part]->model().logits(ranks_[part]->context(), normed_rows, own);
    }
    return logits;
  }

 private:
  // Adds what the first `parts` ranks compute.
  template <typename Compute>
  Values sum(int64_t parts, int64_t rows, int64_t cols, const Compute& compute) {
    Values total(rows * cols, 0.0f);
    for (int64_t i = 0; i < parts; ++i) {
      Values own(rows * cols, std::numeric_limits<float>::quiet_NaN());
      compute(*ranks_[i], Rows(own.data(), rows, cols));
      for (size_t j = 0; j < total.size(); ++j) total[j] += own[j];
    }
    return total;
  }

  Values feed_forward(int64_t layer, Rows x) {
    if (!ranks_.front()->model().has_experts(layer))
      return sum(division_.dense, x.rows, x.cols,
                 [&](ModelRunner& rank, Rows y) { rank.model().dense(rank.context(), layer, x, y); });
    Values total = sum(division_.shared, x.rows, x.cols,
                       [&](ModelRunner& rank, Rows y) { rank.model().shared(rank.context(), layer, x, y); });
    const Values routed =
        sum(division_.experts * division_.expert_width, x.rows, x.cols, [&](ModelRunner& rank, Rows y) {
          std::fill_n(y.data, y.rows * y.cols, 0.0f);
          const Routing routing = rank.model().route(rank.context(), layer, x);
          rank.model().routed(rank.context(), layer, routing, x, y);
        });
    for (size_t i = 0; i < total.size(); ++i) total[i] += routed[i];
    return total;
  }

  const ModelConfig& config_;
  const Division division_;
  std::vector<std::unique_ptr<ModelRunner>> ranks_;
  Range layers_;
  bool is_first_ = false, is_last_ = false;
};

// Relative to their range; sums come in another order, nothing else differs.
constexpr double kTolerance = 2e-5;

void expect_same_logits(const ModelConfig& config, const TensorSet& weights, kernels::Implementation implementation,
                        const Division& division) {
  const ModelOptions options{implementation, kernels::Activation::kFloat32, {}};
  const std::vector<int32_t> tokens = random_tokens(config, 21);
  const std::vector<int32_t> pages = {5, 3, 9, 1, 7, 2};  // of 4 tokens
  ModelRunner whole(config, weights, options);
  std::vector<Stage> stages;
  for (int64_t i = 0; i < division.stages; ++i) stages.emplace_back(config, weights, options, division, i);

  for (const auto& [begin, count] : {std::pair<size_t, size_t>{0, 18}, {18, 2}, {20, 1}}) {
    StepBuilder builder(begin);
    builder.add(std::span(tokens).subspan(begin, count), static_cast<int64_t>(begin), pages, /*expanded_until=*/18,
                static_cast<int64_t>(count));
    const Step step = std::move(builder).build();
    const Recorded expected = whole.run(step);
    Values values;
    for (Stage& stage : stages) values = stage.run(step, std::move(values));
    ASSERT_EQ(values.size(), expected.logits.size());
    const auto [low, high] = std::minmax_element(expected.logits.begin(), expected.logits.end());
    for (size_t i = 0; i < values.size(); ++i)
      ASSERT_NEAR(values[i], expected.logits[i], kTolerance * (*high - *low)) << "logit " << i << " from " << begin;
  }
}

constexpr Division kDivisions[] = {
    {.heads = 2},
    {.heads = 4, .embedding = 3, .head = 4},
    {.dense = 2, .shared = 2, .expert_width = 2},
    {.heads = 2, .dense = 1, .shared = 1, .experts = 4},
    {.heads = 2, .dense = 3, .shared = 3, .experts = 2, .expert_width = 2, .embedding = 2, .head = 2},
    {.stages = 2},
    {.heads = 2, .dense = 2, .shared = 2, .experts = 2, .embedding = 5, .head = 7, .stages = 3},
};

TEST(Shards, OfTheGoldensAddUp) {
  int cases = 0;
  for (const std::string name : {"v2-lite", "v2", "v3", "kimi-k2"}) {
    const GoldenFolder golden = GoldenFolder::read(name);
    for (const Division& division : kDivisions)
      for (const auto implementation : {kernels::Implementation::kReference, kernels::Implementation::kFast}) {
        SCOPED_TRACE(::testing::Message() << name << ", division " << &division - kDivisions);
        expect_same_logits(golden.config, golden.weights, implementation, division);
        if (HasFatalFailure()) return;
        ++cases;
      }
  }
  std::printf("%d divisions compared\n", cases);
}

// Widths that are no multiples of a scale block: parts differ in size, are empty, or begin inside a block.
TEST(Shards, OfFp8WeightsAddUp) {
  int cases = 0;
  for (const bool lite : {false, true})
    for (const Division& division : kDivisions) {
      ModelConfig config = tiny_config();
      set_fp8(config);
      if (lite) set_v2_lite(config);
      const TensorSet weights = random_checkpoint(config, {.name = "fp8", .stored = Stored::kFp8}, 3);
      SCOPED_TRACE(::testing::Message() << (lite ? "v2-lite" : "v3") << ", division " << &division - kDivisions);
      for (const auto implementation : {kernels::Implementation::kReference, kernels::Implementation::kFast})
        expect_same_logits(config, weights, implementation, division);
      if (HasFatalFailure()) return;
      ++cases;
    }
  std::printf("%d divisions compared\n", cases);
}

TEST(Shards, PartsCoverAWidthOnce) {
  int cases = 0;
  for (const int64_t unit : {1, 128})
    for (int64_t size = 1; size < 1500; size += 7)
      for (int64_t count = 1; count <= 8; ++count, ++cases) {
        int64_t end = 0;
        for (int64_t index = 0; index < count; ++index) {
          const Range range = ShardPart{index, count}.of(size, unit);
          ASSERT_EQ(range.begin, end);
          ASSERT_GE(range.size(), 0);
          ASSERT_EQ(range.begin == size ? 0 : range.begin % unit, 0);
          end = range.end;
        }
        ASSERT_EQ(end, size);
      }
  std::printf("%d widths divided\n", cases);
}

}  // namespace
}  // namespace plait::testing
