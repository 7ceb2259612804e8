#include "layout/stage.h"

#include "topology/rules.h"

namespace plait {
namespace {

constexpr int64_t kLogitBytes = 4;  // float32

struct Declarer {
  const ModelFacts& facts;
  const ParallelConfig& config;
  const TokenAxes& axes;
  const StepForm& form;

  RowOrderKind order() const { return form.context_parallel ? RowOrderKind::kContext : RowOrderKind::kBatch; }
  Layout sharded(AxisSet over) const { return {over, order()}; }
  // Rows of a data-parallel rank, or of a context rank where the step divides them.
  Layout attention_rows() const {
    return sharded(form.context_parallel ? axes.attn_dp() | axes.attn_cp() : axes.attn_dp());
  }

  StageDeclaration embedding() const {
    return {.kind = StageKind::kEmbedding, .needs = attention_rows(), .owes = axes.attn_tp(), .width = facts.hidden};
  }

  StageDeclaration add_norm(NormPlace place) const {
    return {.kind = StageKind::kAddNorm,
            .norm = place,
            .width = facts.hidden,
            .row_flops = 6.0 * static_cast<double>(facts.hidden)};
  }

  StageDeclaration latent_projection() const {
    const int64_t width = facts.q_lora_rank + facts.latent_width;
    return {.kind = StageKind::kLatentProjection,
            .width = width,
            .row_flops = 2.0 * static_cast<double>(facts.hidden * width)};
  }

  StageDeclaration attention() const {
    StageDeclaration stage{
        .kind = StageKind::kAttention, .needs = attention_rows(), .owes = axes.attn_tp(), .width = facts.hidden};
    if (form.context_parallel) {
      stage.inside.push_back({.what = "KV latents",
                              .kind = CollectiveKind::kAllGather,
                              .axes = axes.attn_cp(),
                              .row_bytes = facts.latent_width * facts.activation_bytes});
    }
    // Also where the step's rows are not divided: each context rank has a part of the pages only.
    if (config.prefill_cp_kv_sharded) {
      stage.inside.push_back({.what = "KV pages",
                              .kind = CollectiveKind::kAllGather,
                              .axes = axes.attn_cp(),
                              .row_bytes = facts.latent_width * facts.cache_bytes,
                              .of_history = true});
    }
    return stage;
  }

  // With whole weights on every rank there is no sum, and every row is computed once only if no two ranks hold it.
  StageDeclaration dense_mlp() const {
    return {.kind = StageKind::kDenseMlp,
            .needs = sharded(axes.all() - axes.dense()),
            .owes = axes.dense(),
            .width = facts.hidden};
  }

  StageDeclaration shared_expert() const {
    return {.kind = StageKind::kSharedExpert,
            .width = facts.hidden,
            .row_flops = 6.0 * static_cast<double>(facts.hidden * facts.shared_intermediate),
            .adds_shared = true};
  }

  StageDeclaration experts(bool with_shared) const {
    StageDeclaration stage{.kind = StageKind::kExperts,
                           .needs = sharded(axes.all() - axes.experts()),
                           .owes = axes.experts(),
                           .width = facts.hidden,
                           .scales_routed = true,
                           .adds_shared = with_shared};
    if (config.moe_a2a_backend == MoeA2a::kNone) return stage;
    stage.needs = sharded(axes.all());
    stage.owes = {};
    if (axes.experts().empty()) return stage;
    // A token goes once to every rank that has one of its experts; each of these experts' results comes back, because
    // weights are applied where the token is.
    const double ranks = axes.width(axes.experts());
    const auto chosen = static_cast<double>(facts.experts_per_token);
    const double elsewhere = (ranks - 1) / ranks;
    const double reached = ranks * (1 - std::pow(elsewhere, chosen));
    StageTraffic traffic{.what = "dispatch",
                         .kind = CollectiveKind::kAllToAll,
                         .axes = axes.experts(),
                         .row_bytes = facts.hidden * facts.activation_bytes,
                         .rows_per_token = reached * elsewhere};
    stage.inside.push_back(traffic);
    traffic.what = "combine";
    traffic.after = true;
    traffic.rows_per_token = chosen * elsewhere;
    stage.inside.push_back(traffic);
    return stage;
  }

  StageDeclaration head() const {
    const AxisSet vocabulary_over = config.enable_dp_lm_head ? axes.attn_tp() : axes.all();
    const AxisSet rows_over = config.enable_dp_lm_head ? axes.attn_dp() : AxisSet{};
    StageDeclaration stage{.kind = StageKind::kHead, .needs = Layout{rows_over}, .width = facts.vocabulary};
    if (!vocabulary_over.empty()) {
      stage.inside.push_back({.what = "logits",
                              .kind = CollectiveKind::kAllGather,
                              .axes = vocabulary_over,
                              .row_bytes = facts.vocabulary * kLogitBytes,
                              .after = true});
    }
    return stage;
  }

  std::vector<StageDeclaration> layer(bool has_experts) const {
    std::vector<StageDeclaration> stages = {add_norm(NormPlace::kAttention)};
    if (facts.q_lora_rank > 0) stages.push_back(latent_projection());
    stages.push_back(attention());
    stages.push_back(add_norm(NormPlace::kFeedForward));
    if (!has_experts) {
      stages.push_back(dense_mlp());
      return stages;
    }
    // Once: inside the experts' sum, or beside it on the residual.
    const bool inside = facts.shared_intermediate > 0 && shares_shared_expert(config, facts);
    if (facts.shared_intermediate > 0 && !inside) stages.push_back(shared_expert());
    stages.push_back(experts(inside));
    return stages;
  }
};

constexpr const char* kStageNames[] = {
    "embedding", "add + norm",   "latent projection", "attention",   "dense MLP", "shared expert",
    "experts",   "add residual", "send/receive",      "select rows", "LM head"};
constexpr const char* kSegmentNames[] = {"embedding", "dense layer", "expert layer", "pipeline boundary", "head"};
constexpr const char* kCollectiveNames[] = {"all_reduce", "reduce_scatter", "all_gather",
                                            "slice",      "all_to_all",     "send_receive"};

}  // namespace

const char* name_of(StageKind kind) {
  return kStageNames[static_cast<int>(kind)];
}

const char* name_of(SegmentKind kind) {
  return kSegmentNames[static_cast<int>(kind)];
}

const char* name_of(CollectiveKind kind) {
  return kCollectiveNames[static_cast<int>(kind)];
}

std::vector<StageDeclaration> declare_stages(SegmentKind kind, const ModelFacts& facts, const ParallelConfig& config,
                                             const TokenAxes& axes, const StepForm& form) {
  const Declarer declarer{facts, config, axes, form};
  switch (kind) {
    case SegmentKind::kEmbedding:
      return {declarer.embedding()};
    case SegmentKind::kDenseLayer:
      return declarer.layer(/*has_experts=*/false);
    case SegmentKind::kExpertLayer:
      return declarer.layer(/*has_experts=*/true);
    case SegmentKind::kStageBoundary:
      return {{.kind = StageKind::kResidualAdd, .width = facts.hidden},
              {.kind = StageKind::kSendReceive, .width = facts.hidden}};
    case SegmentKind::kHead:
      return {{.kind = StageKind::kSelectRows, .width = facts.hidden},
              declarer.add_norm(NormPlace::kHead),
              declarer.head()};
  }
  return {};
}

int stage_of_layer(int64_t layer, int64_t layers, int stages) {
  const int64_t each = layers / stages, longer = layers % stages;
  const int64_t in_longer = longer * (each + 1);
  if (layer < in_longer) return static_cast<int>(layer / (each + 1));
  return static_cast<int>(longer + (layer - in_longer) / each);
}

}  // namespace plait
