#include "tests/engine/rank_launches.h"

#include <numeric>
#include <set>

#include "base/assert.h"
#include "engine/agreed_rows.h"
#include "engine/engine_setup.h"
#include "engine/exchange_options.h"
#include "engine/step_places.h"
#include "model/model_facts.h"

namespace plait::testing {
namespace {

using cuda::GemmFormat;
using cuda::GemmRows;
using cuda::GemmShape;
using cuda::QuantizeShape;

int64_t uniform(std::mt19937& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}

// Often 0, 1 or all; else any number, small ones as likely as large ones.
int64_t any_up_to(std::mt19937& random, int64_t most) {
  if (most == 0) return 0;
  switch (uniform(random, 0, 7)) {
    case 0:
      return 0;
    case 1:
      return 1;
    case 2:
    case 3:
      return most;
    case 4:
      return uniform(random, 0, most);
    case 5:
      return uniform(random, 0, std::min<int64_t>(most, 16));
    default:
      const double digits = std::uniform_real_distribution<double>(0, std::log2(static_cast<double>(most) + 1))(random);
      return std::min(most, static_cast<int64_t>(std::exp2(digits)));
  }
}

// Rows of each local expert if `tokens` choose `choices` each of `experts`, of which the first `local` are here.
std::vector<int64_t> random_routing(std::mt19937& random, int64_t tokens, int64_t choices, int64_t local,
                                    int64_t experts) {
  std::vector<int64_t> counts(static_cast<size_t>(local), 0);
  if (tokens * choices <= 4096) {
    const int64_t among = uniform(random, 0, 1) == 0 ? experts : uniform(random, choices, experts);
    std::vector<int64_t> ids(static_cast<size_t>(among));
    std::iota(ids.begin(), ids.end(), int64_t{0});
    for (int64_t token = 0; token < tokens; ++token)
      for (int64_t choice = 0; choice < choices; ++choice) {
        std::swap(ids[static_cast<size_t>(choice)], ids[static_cast<size_t>(uniform(random, choice, among - 1))]);
        if (ids[static_cast<size_t>(choice)] < local) ++counts[static_cast<size_t>(ids[static_cast<size_t>(choice)])];
      }
    return counts;
  }
  // No expert gets more rows than there are tokens; all together no more than are chosen, and no less than what finds
  // no place elsewhere: any such counts can be.
  int64_t left = tokens * std::min(choices, local);
  const bool one_over = uniform(random, 0, 3) == 0;  // each last block has one row
  const double share = std::uniform_real_distribution<double>(0, 2)(random);
  for (int64_t expert = 0; expert < local; ++expert) {
    const auto mean = static_cast<double>(left) / static_cast<double>(local - expert);
    int64_t count = std::min<int64_t>(tokens, uniform(random, 0, static_cast<int64_t>(mean * share)));
    if (one_over) count = std::min(tokens, static_cast<int64_t>(mean) / 128 * 128 + 1);
    count = std::min(count, left);
    counts[static_cast<size_t>(expert)] = count;
    left -= count;
  }
  const int64_t fewest = tokens * std::max<int64_t>(choices - (experts - local), 0);
  int64_t missing = fewest - std::reduce(counts.begin(), counts.end());
  for (int64_t& count : counts) {
    const int64_t more = std::clamp<int64_t>(missing, 0, tokens - count);
    count += more;
    missing -= more;
  }
  return counts;
}

int64_t up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

LaunchingRank::LaunchingRank(const ModelConfig& config, const Topology& topology, std::span<const Plan> plans,
                             const CallLimits& limits, int rank)
    : config_(config),
      facts_(model_facts(config)),
      topology_(topology),
      plans_(plans),
      limits_(limits),
      at_(topology.coordinates(rank)),
      shapes_(shard_shapes(config, shard_of(topology, facts_, rank))),
      has_exchange_(uses_exchange(facts_, topology.config()) && !plans.front().axes.experts().empty()) {
  if (!has_exchange_) return;
  const StepLimits all = step_limits(topology.config(), limits.max_running_requests, limits.chunked_prefill_tokens);
  const auto options = exchange_options(facts_, topology.config(), all, kernels::Activation::kBFloat16);
  PLAIT_ASSERT(options.has_value(), "the limits fit the exchange");
  low_latency_tokens_ = options->capacity_tokens;
}

// As Batcher::plan: every decoding request has a row, prompts share what is left of the chunk.
Step LaunchingRank::random_step(int dp, bool decode, std::mt19937& random) const {
  const int ranks = topology_.config().attn_dp_size();
  const auto share = [&](int64_t total) { return std::max<int64_t>(data_parallel_share(total, dp, ranks), 1); };
  const int64_t requests = share(limits_.max_running_requests);
  static const std::vector<int32_t> tokens(1 << 16, 0), pages(1, 0);
  StepBuilder builder(1);
  const bool decodes_too = limits_.mode != DisaggregationMode::kPrefill;
  const int64_t decoding = decodes_too ? any_up_to(random, requests) : 0;
  for (int64_t i = 0; i < decoding; ++i) builder.add(std::span(tokens).first(1), 8, pages, 8, 1);
  if (decode || limits_.mode == DisaggregationMode::kDecode) return std::move(builder).build();
  int64_t left = std::max<int64_t>(share(limits_.chunked_prefill_tokens) - decoding, 1);
  int64_t logprobs = uniform(random, 0, 3) == 0 ? share(limits_.prompt_logprob_rows) : 0;
  const bool fair = uniform(random, 0, 2) == 0;  // none takes the room of those after it
  for (int64_t prompt = any_up_to(random, requests - decoding); prompt > 0 && left > 0; --prompt) {
    const int64_t rows = std::max<int64_t>(any_up_to(random, fair ? left / prompt : left), 1);
    const int64_t wanted = std::min(rows, 1 + any_up_to(random, logprobs));
    logprobs -= wanted - 1;
    const int64_t cached = any_up_to(random, 100000);
    builder.add(std::span(tokens).first(static_cast<size_t>(rows)), cached, pages, cached + rows + 1,
                uniform(random, 0, 3) == 0 ? 0 : wanted);
    left -= rows;
  }
  return std::move(builder).build();
}

std::vector<Step> LaunchingRank::random_steps(std::mt19937& random) const {
  const bool decode = uniform(random, 0, 1) == 0 && limits_.mode != DisaggregationMode::kPrefill;
  const bool alike = uniform(random, 0, 2) == 0;
  const int ranks = topology_.config().attn_dp_size();
  const int64_t only = uniform(random, -2 * ranks, ranks - 1);  // negative: none
  const auto seed = static_cast<uint32_t>(random());
  std::vector<Step> steps;
  for (int dp = 0; dp < ranks; ++dp) {
    std::mt19937 same(seed);
    const bool idle = only >= 0 && dp != only;
    steps.push_back(idle ? StepBuilder(1).build() : random_step(dp, decode, alike ? same : random));
  }
  return steps;
}

// Collects the products of one step.
struct LaunchingRank::Products {
  const ModelConfig& config;
  std::vector<Launch>& launches;

  GemmFormat format(std::initializer_list<int64_t> begins) const {
    bool fp8 = config.fp8_block.has_value();
    for (const int64_t begin : begins) fp8 = fp8 && begin % 128 == 0;
    return fp8 ? GemmFormat::kFp8 : GemmFormat::kBf16;
  }
  void quantize(RankMatrix matrix, int64_t k, bool gated, int groups, int64_t rows) const {
    launches.push_back({matrix, QuantizeShape{k, gated, config.power_of_two_scales, groups}, rows});
  }
  void multiply(RankMatrix matrix, GemmFormat format, int64_t n, int64_t k, int64_t rows) const {
    if (format == GemmFormat::kFp8) quantize(matrix, k, false, 0, rows);
    launches.push_back({matrix, GemmShape{.format = format, .n = n, .k = k}, rows});
  }
  void multiply_to_logits(RankMatrix matrix, int64_t n, int64_t rows) const {
    const int64_t k = config.hidden_size;
    launches.push_back(
        {matrix, GemmShape{.format = GemmFormat::kBf16, .n = n, .k = k, .result = cuda::GemmResult::kF32}, rows});
  }
  // gate_up, activation, down for rows in order of `form`.
  void feed_forward(RankMatrix gate_up, RankMatrix down, const FeedForwardShapes& shapes, GemmRows form, int groups,
                    int64_t rows) const {
    const int64_t width = up(shapes.width.size(), 16);
    const GemmFormat format = this->format({shapes.width.begin, shapes.width.size()});
    launches.push_back({gate_up, GemmShape{form, format, 2 * width, config.hidden_size, groups}, rows});
    if (format == GemmFormat::kFp8) quantize(down, width, true, form == GemmRows::kMasked ? groups : 0, rows);
    launches.push_back({down, GemmShape{form, format, config.hidden_size, width, groups}, rows});
  }
  void dense_feed_forward(RankMatrix gate_up, RankMatrix down, const FeedForwardShapes& shapes, int64_t rows) const {
    if (format({shapes.width.begin, shapes.width.size()}) == GemmFormat::kFp8)
      quantize(gate_up, config.hidden_size, false, 0, rows);
    feed_forward(gate_up, down, shapes, GemmRows::kDense, 1, rows);
  }
};

std::vector<Launch> LaunchingRank::launches(const std::vector<Step>& of_dp_ranks, std::mt19937& random) const {
  std::vector<int64_t> rows, logit_rows;
  bool any_prefill = false;
  for (const Step& step : of_dp_ranks) {
    rows.push_back(step.rows());
    logit_rows.push_back(std::ssize(step.logit_rows));
    any_prefill |= step.mode == StepMode::kPrefill || step.mode == StepMode::kMixed;
  }
  std::vector<Launch> made;
  if (std::all_of(rows.begin(), rows.end(), [](int64_t count) { return count == 0; })) return made;
  const Plan& plan = plans_[plan_of_step(topology_.config(), rows)];
  const AgreedRows agreed = agree_rows(plan, rows, logit_rows, any_prefill);
  const StepPlaces tokens(plan, agreed.tokens, at_.tp), logits(plan, agreed.logits, at_.tp);
  const Products products{config_, made};
  const int64_t hidden = config_.hidden_size;

  const auto attention = [&](int64_t count) {
    const AttentionShapes& shapes = shapes_.attention;
    const int64_t heads = shapes.heads.size(), first = shapes.heads.begin;
    if (config_.q_lora_rank)
      products.multiply(RankMatrix::kQueryB, products.format({first * config_.qk_head_dim()}),
                        heads * config_.qk_head_dim(), *config_.q_lora_rank, count);
    const int64_t per_head = config_.qk_nope_head_dim + config_.v_head_dim;
    const int64_t stretch = expanded_stretch_rows(topology_.config(), limits_, at_.attn_dp);
    for (const StepSequence& sequence : of_dp_ranks[static_cast<size_t>(at_.attn_dp)].sequences) {
      if (sequence.first_position >= sequence.expanded_until) continue;
      const int64_t keys = sequence.first_position + sequence.row_count;
      for (const int64_t stretch_rows : {std::min(keys, stretch), keys % stretch})
        products.multiply(RankMatrix::kKvB, products.format({first * per_head}), heads * per_head, config_.kv_lora_rank,
                          stretch_rows);
    }
    products.multiply(RankMatrix::kOutput, products.format({first * config_.v_head_dim}), hidden,
                      heads * config_.v_head_dim, count);
  };
  const auto query_latent = [&](int64_t count) {
    const int64_t heads = shapes_.attention.heads.size();
    const int64_t queries = config_.q_lora_rank.value_or(heads * config_.qk_head_dim());
    const int64_t begin = config_.q_lora_rank ? 0 : shapes_.attention.heads.begin * config_.qk_head_dim();
    products.multiply(RankMatrix::kQueryLatent, products.format({begin, queries}),
                      queries + config_.kv_lora_rank + config_.qk_rope_head_dim, hidden, count);
  };
  const auto experts = [&](const StageStep& step) {
    const AxisSet sharded = step.in.layout.sharded;
    const int64_t count = tokens.count(sharded);
    products.multiply_to_logits(RankMatrix::kRouter, up(facts_.experts, 8), count);
    if (step.stage.adds_shared)
      products.dense_feed_forward(RankMatrix::kSharedGateUp, RankMatrix::kSharedDown, shapes_.shared, count);
    const Range width = shapes_.expert.width;
    if (products.format({width.begin, width.size()}) == GemmFormat::kFp8)
      products.quantize(RankMatrix::kExpertGateUp, hidden, false, 0, count);
    const AxisSet block = sharded - plan.axes.experts();
    const int64_t block_tokens = tokens.count(block);
    const int64_t routed = block_tokens - std::ssize(tokens.padding(block));
    bool masked = !any_prefill;
    if (has_exchange_)
      masked = exchange_form(topology_.config().deepep_mode, low_latency_tokens_, agreed.tokens.padded_rows,
                             any_prefill) == comm::ExchangeForm::kLowLatency;
    const int64_t local = shapes_.experts.size(), choices = facts_.experts_per_token;
    int64_t expert_rows = 0;
    if (masked) {
      if (block_tokens > 0)
        expert_rows = std::max<int64_t>(1, up(block_tokens * choices, facts_.experts) / facts_.experts);
    } else {
      for (const int64_t each : random_routing(random, routed, choices, local, facts_.experts))
        expert_rows += up(each, 128);
    }
    products.feed_forward(RankMatrix::kExpertGateUp, RankMatrix::kExpertDown, shapes_.expert,
                          masked ? GemmRows::kMasked : GemmRows::kContiguous, static_cast<int>(local), expert_rows);
  };

  std::set<int> seen;
  for (const ScheduledSegment& each : plan.order) {
    if (each.pipeline_stage != at_.pp || !seen.insert(each.segment).second) continue;
    for (const PlanStep& any : plan.segments[static_cast<size_t>(each.segment)].steps) {
      const auto* step = std::get_if<StageStep>(&any);
      if (step == nullptr) continue;
      const AxisSet sharded = step->in.layout.sharded;
      switch (step->stage.kind) {
        case StageKind::kLatentProjection:
          query_latent(tokens.count(sharded));
          break;
        case StageKind::kAttention:
          if (!config_.q_lora_rank) query_latent(tokens.count(sharded));
          attention(tokens.count(sharded));
          break;
        case StageKind::kDenseMlp:
          products.dense_feed_forward(RankMatrix::kDenseGateUp, RankMatrix::kDenseDown, shapes_.dense,
                                      tokens.count(sharded));
          break;
        case StageKind::kSharedExpert:
          products.dense_feed_forward(RankMatrix::kSharedGateUp, RankMatrix::kSharedDown, shapes_.shared,
                                      tokens.count(sharded));
          break;
        case StageKind::kExperts:
          experts(*step);
          break;
        case StageKind::kHead:
          products.multiply_to_logits(RankMatrix::kHead, up(shapes_.head_ids.size(), 8), logits.count(sharded));
          break;
        default:
          break;
      }
    }
  }
  std::erase_if(made, [](const Launch& launch) { return launch.rows == 0; });
  return made;
}

}  // namespace plait::testing
