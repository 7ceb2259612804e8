#include "engine/rank_calls.h"

#include <map>

#include "base/assert.h"
#include "base/round.h"
#include "engine/agreed_rows.h"
#include "engine/engine_setup.h"
#include "engine/exchange_options.h"
#include "layout/row_order.h"
#include "model/model_facts.h"
#include "model/shard_shapes.h"

namespace plait {
namespace {

using cuda::GemmFormat;
using cuda::GemmRows;
using cuda::GemmShape;
using cuda::QuantizeShape;

constexpr int64_t kScaleBlock = 128;    // of FP8 weights
constexpr int64_t kWidthMultiple = 16;  // of rows' widths: 16 bytes of e4m3, 8 numbers of bfloat16

constexpr const char* kMatrixNames[] = {"attention.query_latent",
                                        "attention.q_b",
                                        "attention.kv_b",
                                        "attention.o",
                                        "dense.gate_up",
                                        "dense.down",
                                        "router",
                                        "shared.gate_up",
                                        "shared.down",
                                        "experts.gate_up",
                                        "experts.down",
                                        "lm_head"};

// Rows of one data-parallel rank in the largest step of a kind.
struct DpRows {
  int64_t tokens = 0;
  int64_t logits = 0;
};

DpRows most_rows(const ParallelConfig& parallel, const CallLimits& limits, bool decode, int dp) {
  const StepLimits own = step_limits(parallel, limits.max_running_requests, limits.chunked_prefill_tokens, dp);
  const int64_t requests = own.decode.requests_per_rank * own.decode.tokens_per_request;
  if (decode) return {requests, requests};
  // Beside requests that decode, a prompt gets at least one row (SchedulerOptions::chunked_prefill_tokens).
  const bool decodes_too = limits.mode == DisaggregationMode::kNull;
  const int64_t tokens = decodes_too ? std::max(own.prefill_tokens, requests) : own.prefill_tokens;
  const int64_t logprobs =
      std::max<int64_t>(data_parallel_share(limits.prompt_logprob_rows, dp, parallel.attn_dp_size()), 1);
  return {tokens, std::min(tokens, requests + logprobs)};
}

// Steps of one plan and one kind, by the largest of them: counts grow with the loads of data-parallel ranks.
class StepKind {
 public:
  StepKind(const Plan& plan, const AgreedRows& largest, bool decode, bool masked_experts, int rank_in_stage)
      : plan_(plan),
        tokens_(plan.axes, plan.divided, largest.tokens),
        logits_(plan.axes, plan.divided, largest.logits),
        decode_(decode),
        masked_experts_(masked_experts),
        rank_(rank_in_stage) {}

  const Plan& plan() const { return plan_; }
  bool decode() const { return decode_; }
  bool masked_experts() const { return masked_experts_; }

  // Held by the rank in that layout, of tokens or of rows with logits.
  ReachableRows tokens(AxisSet sharded) const { return reachable(tokens_, plan_.alignment().value(), sharded); }
  ReachableRows logits(AxisSet sharded) const { return reachable(logits_, plan_.alignment().shards, sharded); }
  ReachableRows up_to(int64_t last) const { return {decode_, 1, last, 1}; }
  // Of those tokens at most so many are no padding.
  int64_t most_true_tokens(AxisSet sharded) const {
    const StepRows& rows = tokens_.rows();
    int64_t held = 0, of_dp_ranks = 0;
    size_t next_dp = 0;
    for (const RowRun& run : tokens_.held(rank_, sharded)) {
      held += run.count;
      for (size_t dp = std::max(next_dp, rows.dp_of(run.begin)); dp <= rows.dp_of(run.begin + run.count - 1); ++dp) {
        of_dp_ranks += rows.true_rows[dp];
        next_dp = dp + 1;
      }
    }
    return std::min(held, of_dp_ranks);
  }

 private:
  // A data-parallel rank's count is a multiple of `alignment`, of which this rank holds some of the equal pieces.
  ReachableRows reachable(const RowShards& rows, int64_t alignment, AxisSet sharded) const {
    const AxisSet pieces = plan_.divided - plan_.axes.attn_dp();
    const int64_t held = plan_.axes.width(pieces - sharded);
    const int64_t unit = alignment / plan_.axes.width(pieces) * held;
    return {decode_, unit, rows.count(rank_, sharded), unit};
  }

  const Plan& plan_;
  const RowShards tokens_, logits_;
  const bool decode_, masked_experts_;
  const int rank_;
};

// What is reachable of the steps of `plan`, the `index`-th of all, in which everybody decodes or not.
Result<std::optional<StepKind>> step_kind(const ModelFacts& facts, const Topology& topology,
                                          std::span<const Plan> plans, size_t index, const CallLimits& limits,
                                          bool decode, int rank) {
  const ParallelConfig& parallel = topology.config();
  const Plan& plan = plans[index];
  const bool kind_exists =
      limits.mode == DisaggregationMode::kNull || decode == (limits.mode == DisaggregationMode::kDecode);
  if (!kind_exists) return std::nullopt;
  std::vector<int64_t> tokens, logits;
  for (int dp = 0; dp < parallel.attn_dp_size(); ++dp) {
    const DpRows most = most_rows(parallel, limits, decode, dp);
    tokens.push_back(most.tokens);
    logits.push_back(most.logits);
  }
  if (plan_of_step(parallel, tokens) < index) return std::nullopt;
  if (plan_of_step(parallel, tokens) > index) {
    // The largest step that is too small for the other plan.
    const int64_t most = plans[index + 1].alignment().context_blocks - 1;
    for (int64_t& count : tokens) count = std::min(count, most);
    for (int64_t& count : logits) count = std::min(count, most);
    PLAIT_ASSERT(plan_of_step(parallel, tokens) == index, "steps with fewer rows than context blocks are not divided");
  }
  const AgreedRows largest = agree_rows(plan, std::move(tokens), std::move(logits), /*any_prefill=*/!decode);
  bool masked = decode;
  if (uses_exchange(facts, parallel) && !plan.axes.experts().empty()) {
    const StepLimits all = step_limits(parallel, limits.max_running_requests, limits.chunked_prefill_tokens);
    PLAIT_ASSIGN_OR_RETURN(const comm::ExpertExchangeOptions exchange,
                           exchange_options(facts, parallel, all, kernels::Activation::kBFloat16));
    masked = exchange_form(parallel.deepep_mode, exchange.capacity_tokens, largest.tokens.padded_rows, !decode) ==
             comm::ExchangeForm::kLowLatency;
  }
  return StepKind(plan, largest, decode, masked, topology.coordinates(rank).tp);
}

// Blocks of kExpertRowAlignment rows, if each of up to `tokens` chooses experts, of which `local` are here.
struct ExpertBlocks {
  int64_t fewest = 0, most = 0;
};
ExpertBlocks expert_blocks(const ModelFacts& facts, int64_t tokens, int64_t local) {
  // The first row of an expert opens a block; each further block takes as many rows as one has.
  const int64_t pairs = tokens * std::min(facts.experts_per_token, local);
  const int64_t spread = pairs <= local ? pairs : local + (pairs - local) / kExpertRowAlignment;
  const int64_t elsewhere = facts.experts - local;
  return {std::max<int64_t>(facts.experts_per_token - elsewhere, 1),
          std::min(spread, local * ceil_div(tokens, kExpertRowAlignment))};
}

class CallList {
 public:
  CallList(const ModelConfig& config, const ModelFacts& facts, const ModelShard& shard, int64_t stretch_rows)
      : config_(config), facts_(facts), shapes_(shard_shapes(config, shard)), stretch_rows_(stretch_rows) {}

  void add_stage(const StageStep& step, int64_t layer, const StepKind& kind) {
    layer_ = layer;
    const AxisSet sharded = step.in.layout.sharded;
    switch (step.stage.kind) {
      case StageKind::kLatentProjection:
        return product(RankMatrix::kQueryLatent, query_latent(), kind.tokens(sharded));
      case StageKind::kAttention:
        return attention(kind.tokens(sharded), kind);
      case StageKind::kDenseMlp:
        return feed_forward(RankMatrix::kDenseGateUp, RankMatrix::kDenseDown, shapes_.dense, kind.tokens(sharded));
      case StageKind::kSharedExpert:
        return shared_expert(kind.tokens(sharded));
      case StageKind::kExperts:
        return experts(step, kind);
      case StageKind::kHead:
        return add(RankMatrix::kHead, logits_of(shapes_.lm_head.out), kind.logits(sharded));
      default:
        return;  // no weights, or the embedding's table
    }
  }

  // Layers with the same rows together; calls in the order in which they were found.
  std::vector<RankCall> take() {
    std::vector<RankCall> calls;
    for (const Found& found : found_)
      for (const auto& [layer, rows] : found.rows) {
        auto same = std::find_if(calls.begin(), calls.end(), [&](const RankCall& call) {
          return call.matrix == found.matrix && call.operation == found.operation && call.rows == rows;
        });
        if (same == calls.end()) same = calls.insert(same, {found.matrix, found.operation, {}, rows});
        if (layer >= 0) same->layers.push_back(layer);
      }
    return calls;
  }

 private:
  using Operation = decltype(RankCall::operation);
  struct Found {
    RankMatrix matrix;
    Operation operation;
    std::map<int64_t, std::vector<ReachableRows>> rows;  // by layer, -1: none
  };
  struct Matrix {
    int64_t n = 0, k = 0;
    GemmFormat format = GemmFormat::kBf16;
  };

  // Local rows or columns that begin at `begins` of the stored matrix or of a stack: FP8 if no block of scales is cut.
  GemmFormat format_of(std::initializer_list<int64_t> begins) const {
    const bool whole =
        std::all_of(begins.begin(), begins.end(), [](int64_t begin) { return begin % kScaleBlock == 0; });
    return config_.fp8_block && whole ? GemmFormat::kFp8 : GemmFormat::kBf16;
  }

  Matrix query_latent() const {
    const AttentionShapes& shapes = shapes_.attention;
    const int64_t begin = config_.q_lora_rank ? 0 : shapes.heads.begin * config_.qk_head_dim();
    return {shapes.query_latent.out, shapes.query_latent.in, format_of({begin, shapes.query_rows})};
  }

  void attention(ReachableRows rows, const StepKind& kind) {
    const AttentionShapes& shapes = shapes_.attention;
    const int64_t first_head = shapes.heads.begin;
    if (config_.q_lora_rank)
      product(RankMatrix::kQueryB, {shapes.q_b.out, shapes.q_b.in, format_of({first_head * config_.qk_head_dim()})},
              rows);
    else
      product(RankMatrix::kQueryLatent, query_latent(), rows);
    if (!kind.decode()) {
      const int64_t per_head = config_.qk_nope_head_dim + config_.v_head_dim;
      product(RankMatrix::kKvB, {shapes.kv_b.out, shapes.kv_b.in, format_of({first_head * per_head})},
              kind.up_to(stretch_rows_));
    }
    product(RankMatrix::kOutput, {shapes.o.out, shapes.o.in, format_of({first_head * config_.v_head_dim})}, rows);
  }

  void shared_expert(ReachableRows rows) {
    feed_forward(RankMatrix::kSharedGateUp, RankMatrix::kSharedDown, shapes_.shared, rows);
  }

  // The local width as kernels take it, and whether its weights are FP8.
  struct Width {
    int64_t size = 0;
    GemmFormat format = GemmFormat::kBf16;
  };
  Width width_of(const FeedForwardShapes& shapes) const {
    return {round_up(shapes.width.size(), kWidthMultiple), format_of({shapes.width.begin, shapes.width.size()})};
  }

  void feed_forward(RankMatrix gate_up, RankMatrix down, const FeedForwardShapes& shapes, ReachableRows rows) {
    const Width width = width_of(shapes);
    product(gate_up, {2 * width.size, config_.hidden_size, width.format}, rows);
    if (width.format == GemmFormat::kFp8) add(down, quantisation(width.size, /*gated=*/true, 0), rows);
    add(down, shape_of(GemmRows::kDense, width.format, config_.hidden_size, width.size), rows);
  }

  // Tokens are quantised where they are routed, once, and travel and are sorted like that.
  void experts(const StageStep& step, const StepKind& kind) {
    const AxisSet sharded = step.in.layout.sharded;
    add(RankMatrix::kRouter, logits_of(facts_.experts), kind.tokens(sharded));
    if (step.stage.adds_shared) shared_expert(kind.tokens(sharded));
    const Width width = width_of(shapes_.expert);
    const bool fp8 = width.format == GemmFormat::kFp8;
    if (fp8)
      add(RankMatrix::kExpertGateUp, quantisation(config_.hidden_size, /*gated=*/false, 0), kind.tokens(sharded));
    const auto groups = static_cast<int>(shapes_.experts.size());
    const AxisSet block = sharded - kind.plan().axes.experts();
    const ReachableRows rows = kind.masked_experts() ? masked_rows(kind.tokens(block))
                                                     : contiguous_rows(kind, kind.most_true_tokens(block), groups);
    const GemmRows form = kind.masked_experts() ? GemmRows::kMasked : GemmRows::kContiguous;
    add(RankMatrix::kExpertGateUp, shape_of(form, width.format, 2 * width.size, config_.hidden_size, groups), rows);
    if (fp8)
      add(RankMatrix::kExpertDown, quantisation(width.size, /*gated=*/true, kind.masked_experts() ? groups : 0), rows);
    add(RankMatrix::kExpertDown, shape_of(form, width.format, config_.hidden_size, width.size, groups), rows);
  }

  ReachableRows masked_rows(ReachableRows tokens) const {
    return {tokens.decode, mean_expert_rows(facts_, tokens.first), mean_expert_rows(facts_, tokens.last), 1};
  }
  ReachableRows contiguous_rows(const StepKind& kind, int64_t tokens, int64_t local) const {
    const ExpertBlocks blocks = expert_blocks(facts_, tokens, local);
    return {kind.decode(), blocks.fewest * kExpertRowAlignment, blocks.most * kExpertRowAlignment, kExpertRowAlignment};
  }

  static GemmShape shape_of(GemmRows rows, GemmFormat format, int64_t n, int64_t k, int groups = 1) {
    return {.rows = rows, .format = format, .n = n, .k = k, .groups = groups};
  }
  // Logits, which are compared with each other: in float32 as on a CPU, by weights that checkpoints keep in bfloat16.
  GemmShape logits_of(int64_t outputs) const {
    return {.format = GemmFormat::kBf16,
            .n = round_up(outputs, 8),
            .k = config_.hidden_size,
            .result = cuda::GemmResult::kF32};
  }
  QuantizeShape quantisation(int64_t k, bool gated, int groups) const {
    return {.k = k, .gated = gated, .power_of_two = config_.power_of_two_scales, .groups = groups};
  }

  // A product with one matrix, and what makes its rows.
  void product(RankMatrix which, const Matrix& matrix, ReachableRows rows) {
    if (matrix.format == GemmFormat::kFp8) add(which, quantisation(matrix.k, /*gated=*/false, 0), rows);
    add(which, shape_of(GemmRows::kDense, matrix.format, matrix.n, matrix.k), rows);
  }

  void add(RankMatrix matrix, const Operation& operation, ReachableRows rows) {
    auto found = std::find_if(found_.begin(), found_.end(),
                              [&](const Found& each) { return each.matrix == matrix && each.operation == operation; });
    if (found == found_.end()) found = found_.insert(found, {matrix, operation, {}});
    std::vector<ReachableRows>& known = found->rows[layer_];
    if (std::find(known.begin(), known.end(), rows) == known.end()) known.push_back(rows);
  }

  const ModelConfig& config_;
  const ModelFacts& facts_;
  const ShardShapes shapes_;
  const int64_t stretch_rows_;
  int64_t layer_ = -1;
  std::vector<Found> found_;
};

Status check_shapes(std::span<const RankCall> calls) {
  for (const RankCall& call : calls) {
    const Status status = std::holds_alternative<GemmShape>(call.operation)
                              ? cuda::validate(std::get<GemmShape>(call.operation), cuda::GemmConfig{})
                              : cuda::validate(std::get<QuantizeShape>(call.operation));
    if (status.has_error()) return unsupported(fmt::format("{}: {}", describe(call), status.error().message));
  }
  return {};
}

std::string describe_layers(std::span<const int64_t> layers) {
  std::string text;
  for (size_t begin = 0; begin < layers.size();) {
    size_t end = begin + 1;
    while (end < layers.size() && layers[end] == layers[end - 1] + 1) ++end;
    text += fmt::format("{}{}", text.empty() ? "" : ", ", layers[begin]);
    if (end > begin + 1) text += fmt::format("-{}", layers[end - 1]);
    begin = end;
  }
  return text;
}

}  // namespace

const char* name_of(RankMatrix matrix) {
  return kMatrixNames[static_cast<int>(matrix)];
}

std::string describe(const RankCall& call) {
  const bool input = std::holds_alternative<QuantizeShape>(call.operation);
  const char* layers = call.layers.empty() ? "" : call.layers.size() == 1 ? "layer " : "layers ";
  return fmt::format("{}{}{}{}{}", layers, describe_layers(call.layers), call.layers.empty() ? "" : " ",
                     name_of(call.matrix), input ? " (input)" : "");
}

int64_t mean_expert_rows(const ModelFacts& facts, int64_t tokens) {
  return std::max<int64_t>(ceil_div(tokens * facts.experts_per_token, facts.experts), 1);
}

int64_t expanded_stretch_rows(const ParallelConfig& parallel, const CallLimits& limits, int dp) {
  return most_rows(parallel, limits, /*decode=*/false, dp).tokens;
}

Result<std::vector<RankCall>> rank_calls(const ModelConfig& config, const Topology& topology,
                                         std::span<const Plan> plans, const CallLimits& limits, int rank) {
  const ModelFacts facts = model_facts(config);
  const RankCoordinates at = topology.coordinates(rank);
  CallList list(config, facts, shard_of(topology, facts, rank),
                expanded_stretch_rows(topology.config(), limits, at.attn_dp));
  for (size_t index = 0; index < plans.size(); ++index)
    for (const bool decode : {false, true}) {
      PLAIT_ASSIGN_OR_RETURN(const std::optional<StepKind> kind,
                             step_kind(facts, topology, plans, index, limits, decode, rank));
      if (!kind) continue;
      for (const ScheduledSegment& each : plans[index].order) {
        if (each.pipeline_stage != at.pp) continue;
        for (const PlanStep& step : plans[index].segments[each.segment].steps)
          if (const auto* stage = std::get_if<StageStep>(&step)) list.add_stage(*stage, each.layer, *kind);
      }
    }
  std::vector<RankCall> calls = list.take();
  PLAIT_RETURN_IF_ERROR(check_shapes(calls));
  return calls;
}

}  // namespace plait
