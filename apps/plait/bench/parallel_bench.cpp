#include "bench/parallel_bench.h"

#include <map>
#include <random>

#include "base/units.h"
#include "bench/model_bench.h"
#include "checkpoint/weight_loader.h"
#include "engine/engine_setup.h"
#include "engine/rank_team.h"
#include "engine/step_traffic.h"
#include "layout/planner.h"
#include "model/model_facts.h"
#include "topology/rules.h"

namespace plait {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kDefaultLayers = 3;
constexpr int64_t kFewestTimedSteps = 3;

struct Way {
  const char* name;
  ParallelConfig config;
};

std::vector<Way> ways() {
  return {
      {"one rank", {}},
      {"tp 2", {.tp_size = 2}},
      {"tp 2, dp 2", {.tp_size = 2, .dp_size = 2, .enable_dp_attention = true}},
      {"tp 2, ep 2", {.tp_size = 2, .ep_size = 2}},
      {"tp 2, ep 2, a2a", {.tp_size = 2, .ep_size = 2, .moe_a2a_backend = MoeA2a::kAllToAll}},
      {"tp 2, dp 2, a2a",
       {.tp_size = 2, .dp_size = 2, .enable_dp_attention = true, .ep_size = 2, .moe_a2a_backend = MoeA2a::kAllToAll}},
      {"tp 2, cp 2", {.tp_size = 2, .attn_cp_size = 2, .enable_prefill_cp = true}},
      {"pp 2", {.pp_size = 2}}};
}

struct PipelineRun {
  double seconds = 0;
  double bubble = 0;  // share of the stages' time in which they have nothing to do
};

// Ranks with random weights, driven step by step.
class Ranks {
 public:
  static Result<Ranks> create(const ModelConfig& config, const EngineOptions& options, const ParallelConfig& asked) {
    const ModelFacts facts = model_facts(config);
    const ParallelVerdict verdict = judge(asked, &facts);
    PLAIT_RETURN_IF_ERROR(verdict.status());
    PLAIT_ASSIGN_OR_RETURN(const kernels::Activation activation, activation_of(options.dtype, config));
    const Topology topology(verdict.config);
    std::vector<std::unique_ptr<Model>> models;
    for (int rank = 0; rank < topology.world(); ++rank) {
      const ModelOptions own{options.implementation, activation, shard_of(topology, facts, rank)};
      PLAIT_ASSIGN_OR_RETURN(models.emplace_back(), make_model(config, own));
    }
    Ranks ranks;
    const TeamOptions team{
        .parallel = verdict.config, .model = {options.implementation, activation, {}}, .threads = options.threads};
    PLAIT_ASSIGN_OR_RETURN(ranks.team_, RankTeam::create(config, team, std::move(models)));
    const LoadOptions load{.threads = options.threads, .num_hidden_layers = config.num_hidden_layers};
    PLAIT_RETURN_IF_ERROR(
        load_dummy_weights(ranks.team_->weight_requests(), config.weight_dtype, /*fp8_block=*/0, load));
    PLAIT_RETURN_IF_ERROR(ranks.team_->finish_loading());
    ranks.page_tokens_ = options.page_tokens;
    ranks.vocabulary_ = config.vocab_size;
    return ranks;
  }

  // Sequences and tokens are those of all data-parallel ranks together.
  void reserve(int64_t sequences, int64_t tokens_each) {
    const int64_t most = data_parallel_share(sequences, 0, team_->dp_ranks());
    pages_each_ = (tokens_each + page_tokens_ - 1) / page_tokens_;
    team_->allocate_kv(most * pages_each_, page_tokens_, most);
  }
  Result<double> time(int64_t sequences, int64_t rows_each, int64_t first_position) {
    std::vector<Step> steps;
    for (int dp = 0; dp < team_->dp_ranks(); ++dp) {
      StepBuilder builder(0);
      const int64_t own = data_parallel_share(sequences, dp, team_->dp_ranks());
      for (int64_t i = 0; i < own; ++i) add(builder, i, rows_each, first_position);
      steps.push_back(std::move(builder).build());
    }
    std::vector<const Step*> of_dp_ranks;
    for (const Step& step : steps) of_dp_ranks.push_back(&step);
    const auto begin = Clock::now();
    PLAIT_RETURN_IF_ERROR(team_->run(of_dp_ranks, [](int, ThreadPool&, Rows) {}));
    return std::chrono::duration<double>(Clock::now() - begin).count();
  }
  // Steps of the only data-parallel rank: a prompt in chunks; one token of each sequence, in `shares` steps, again and
  // again.
  std::vector<Step> prompt_chunks(int64_t tokens, int64_t chunk) {
    std::vector<Step> steps;
    for (int64_t at = 0; at < tokens; at += chunk) {
      StepBuilder builder(0);
      add(builder, 0, std::min(chunk, tokens - at), at);
      steps.push_back(std::move(builder).build());
    }
    return steps;
  }
  std::vector<Step> decode_rounds(int64_t sequences, int64_t first_position, int64_t shares, int64_t rounds) {
    std::vector<Step> steps;
    for (int64_t i = 0; i < rounds * shares; ++i) {
      StepBuilder builder(0);
      for (int64_t sequence = i % shares; sequence < sequences; sequence += shares)
        add(builder, sequence, 1, first_position + i / shares);
      steps.push_back(std::move(builder).build());
    }
    return steps;
  }
  Result<PipelineRun> run_pipeline(const std::vector<Step>& steps, int64_t under_way) {
    PipelineRun run;
    const std::vector<double> before = team_->busy_seconds();
    const auto begin = Clock::now();
    for (int64_t launched = 0, collected = 0; collected < std::ssize(steps);) {
      if (launched < std::ssize(steps) && launched - collected < under_way) {
        const Step* const step = &steps[static_cast<size_t>(launched++)];
        team_->launch({&step, 1}, [](int, ThreadPool&, Rows, const RankTeam::Chosen&) {});
        continue;
      }
      PLAIT_RETURN_IF_ERROR(team_->collect());
      ++collected;
    }
    run.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    const std::vector<double> after = team_->busy_seconds();
    for (size_t rank = 0; rank < after.size(); ++rank) run.bubble += 1 - (after[rank] - before[rank]) / run.seconds;
    run.bubble /= static_cast<double>(after.size());
    return run;
  }
  const RankTeam& team() const { return *team_; }

 private:
  void add(StepBuilder& builder, int64_t sequence, int64_t rows, int64_t first_position) {
    std::vector<int32_t> ids(static_cast<size_t>(rows)), pages(static_cast<size_t>(pages_each_));
    for (int32_t& id : ids) id = static_cast<int32_t>(random_() % static_cast<uint32_t>(vocabulary_));
    for (size_t i = 0; i < pages.size(); ++i)
      pages[i] = static_cast<int32_t>(sequence * pages_each_) + static_cast<int32_t>(i);
    builder.add(ids, first_position, pages, /*expanded_until=*/std::max<int64_t>(first_position, rows),
                /*logit_count=*/1);
  }

  std::unique_ptr<RankTeam> team_;
  int64_t page_tokens_ = 0;
  int64_t pages_each_ = 0;
  int64_t vocabulary_ = 0;
  std::mt19937 random_{1};
};

struct Measured {
  double seconds = 0;          // of a step, median
  StepTraffic planned, moved;  // by one step
};

Result<Measured> measure(Ranks& ranks, double seconds, int64_t sequences, int64_t rows_each, int64_t first_position) {
  ranks.reserve(sequences, first_position + rows_each);
  PLAIT_RETURN_IF_ERROR(ranks.time(sequences, rows_each, first_position));  // the first touches fresh memory
  Measured measured;
  const StepTraffic before = ranks.team().traffic();
  std::vector<double> times;
  for (double total = 0; total < seconds || std::ssize(times) < kFewestTimedSteps; total += times.back()) {
    PLAIT_ASSIGN_OR_RETURN(times.emplace_back(), ranks.time(sequences, rows_each, first_position));
  }
  const auto steps = static_cast<double>(times.size());
  for (const auto& [name, bytes] : ranks.team().traffic()) {
    const auto old = before.find(name);
    const double moved = (bytes - (old == before.end() ? 0 : old->second)) / steps;
    if (moved > 0) measured.moved[name] = moved;
  }
  measured.planned = planned_traffic(ranks.team().last_plan(), ranks.team().last_step());
  std::nth_element(times.begin(), times.begin() + std::ssize(times) / 2, times.end());
  measured.seconds = times[times.size() / 2];
  return measured;
}

void print_bytes(const char* phase, const Measured& measured) {
  StepTraffic all = measured.planned;
  for (const auto& [name, bytes] : measured.moved) all[name] += 0;
  for (const auto& [name, ignored] : all) {
    const auto planned = measured.planned.find(name);
    const auto moved = measured.moved.find(name);
    const double plan = planned == measured.planned.end() ? 0 : planned->second;
    const double real = moved == measured.moved.end() ? 0 : moved->second;
    if (plan == 0 && real == 0) continue;
    fmt::print("    {:<8} {:<15} {:<13} {:>12} {:>12} {:>7.3f}\n", phase, name.first, name.second,
               format_bytes(static_cast<size_t>(plan)), format_bytes(static_cast<size_t>(real)),
               plan > 0 ? real / plan : 0.0);
  }
}

constexpr int64_t kChunksOfPrompt = 8;
constexpr int64_t kDecodeRounds = 16;

// The median of three, by time.
Result<PipelineRun> usual_run(Ranks& ranks, const std::vector<Step>& steps, int64_t under_way) {
  std::vector<PipelineRun> runs;
  for (int i = 0; i < 3; ++i) {
    PLAIT_ASSIGN_OR_RETURN(runs.emplace_back(), ranks.run_pipeline(steps, under_way));
  }
  std::sort(runs.begin(), runs.end(), [](const auto& a, const auto& b) { return a.seconds < b.seconds; });
  return runs[1];
}

// How long pipeline stages idle when one step is under way, and when there are as many as stages.
Status print_bubble(Ranks& ranks, int64_t stages, int64_t prompt, int64_t batch, int64_t context) {
  ranks.reserve(batch, std::max(prompt, context + kDecodeRounds));
  const int64_t chunk = std::max<int64_t>(prompt / kChunksOfPrompt, 1);
  const std::vector<Step> chunks = ranks.prompt_chunks(prompt, chunk);
  const std::vector<Step> whole = ranks.decode_rounds(batch, context, 1, kDecodeRounds);
  const std::vector<Step> shared = ranks.decode_rounds(batch, context, stages, kDecodeRounds);
  const auto line = [&](const std::string& what, const PipelineRun& run, double least_bubble) {
    fmt::print("    {:<58} {:>9}   bubble {:>5.1f} %, at least {:>5.1f} %\n", what, format_seconds(run.seconds),
               100 * run.bubble, 100 * least_bubble);
  };
  // Equal stages that are filled once and emptied once.
  const auto least = [&](size_t steps) {
    return static_cast<double>(stages - 1) / static_cast<double>(static_cast<int64_t>(steps) + stages - 1);
  };
  const double alone = 1 - 1 / static_cast<double>(stages);
  fmt::print("    {} stages, each with the threads of one rank\n", stages);
  for (const bool full : {false, true}) {
    const int64_t under_way = full ? stages : 1;
    const char* const how = full ? "as many steps under way as stages" : "one step under way";
    PLAIT_ASSIGN_OR_RETURN(const PipelineRun prefill, usual_run(ranks, chunks, under_way));
    line(fmt::format("prefill in {} chunks, {}", chunks.size(), how), prefill, full ? least(chunks.size()) : alone);
    const std::vector<Step>& decode = full ? shared : whole;
    PLAIT_ASSIGN_OR_RETURN(const PipelineRun decoded, usual_run(ranks, decode, under_way));
    line(fmt::format("{} rounds of decode, {}", kDecodeRounds, how), decoded, full ? least(decode.size()) : alone);
  }
  return {};
}

// DeepSeek-V3's sizes, which the planner looks at; nothing is allocated for them.
Status print_planning_time() {
  const ModelFacts facts{.layers = 61,
                         .first_expert_layer = 3,
                         .vocabulary = 129280,
                         .hidden = 7168,
                         .heads = 128,
                         .qk_head_dim = 192,
                         .v_head_dim = 128,
                         .q_lora_rank = 1536,
                         .latent_width = 576,
                         .dense_intermediate = 18432,
                         .experts = 256,
                         .experts_per_token = 8,
                         .expert_intermediate = 2048,
                         .shared_intermediate = 2048,
                         .fp8_block = 128};
  const std::vector<ParallelConfig> configs = {
      {.tp_size = 64, .dp_size = 64, .enable_dp_attention = true, .ep_size = 64, .moe_a2a_backend = MoeA2a::kAllToAll},
      {.tp_size = 16, .pp_size = 4, .dp_size = 4, .enable_dp_attention = true, .ep_size = 8},
      {.tp_size = 64,
       .dp_size = 4,
       .enable_dp_attention = true,
       .ep_size = 64,
       .moe_a2a_backend = MoeA2a::kAllToAll,
       .attn_cp_size = 4,
       .enable_prefill_cp = true}};
  fmt::print("\nplanning for DeepSeek-V3's 61 layers on 64 ranks, median of 20\n");
  for (const ParallelConfig& asked : configs) {
    const ParallelVerdict verdict = judge(asked, &facts);
    PLAIT_RETURN_IF_ERROR(verdict.status());
    const Topology topology(verdict.config);
    std::vector<double> times;
    for (int i = 0; i < 20; ++i) {
      const auto begin = Clock::now();
      PLAIT_RETURN_IF_ERROR(make_plan(topology, facts, {.context_parallel = verdict.config.attn_cp_size > 1}));
      times.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    }
    std::nth_element(times.begin(), times.begin() + 10, times.end());
    fmt::print("  {:>8}  {}\n", format_seconds(times[10]), to_flags(verdict.config));
  }
  return {};
}

}  // namespace

Status bench_parallel(const EngineOptions& options, const BenchOptions& bench) {
  const int64_t layers = bench.layers > 0 ? bench.layers : kDefaultLayers;
  const int64_t prompt = bench.prefill_tokens.front();
  const int64_t batch = bench.decode_batch.front();
  const int64_t context = bench.decode_context_tokens.front();
  PLAIT_ASSIGN_OR_RETURN(const ModelConfig config, v2_lite_config(layers, BenchOptions::WeightKind::kBF16));
  fmt::print("DeepSeek-V2-Lite's widths, {} layers, BF16; prefill of {} tokens, decode of {} sequences at {}\n", layers,
             prompt, batch, context);
  fmt::print("times are medians, ratios are to one rank with the same threads; bytes are of one step, all ranks\n");
  double prefill_alone = 0, decode_alone = 0;
  for (const Way& way : ways()) {
    auto created = Ranks::create(config, options, way.config);
    if (created.has_error()) return std::move(created).error().within(way.name);
    Ranks ranks = std::move(created).value();
    PLAIT_ASSIGN_OR_RETURN(const Measured prefill, measure(ranks, bench.seconds_per_row, 2, prompt / 2, 0));
    PLAIT_ASSIGN_OR_RETURN(const Measured decode, measure(ranks, bench.seconds_per_row, batch, 1, context));
    if (prefill_alone == 0) {
      prefill_alone = prefill.seconds;
      decode_alone = decode.seconds;
    }
    fmt::print("\n{:<17} prefill {:>9} {:>5.2f}x   decode {:>9} {:>5.2f}x\n", way.name, format_seconds(prefill.seconds),
               prefill_alone / prefill.seconds, format_seconds(decode.seconds), decode_alone / decode.seconds);
    if (!prefill.planned.empty() || !prefill.moved.empty())
      fmt::print("    {:<8} {:<15} {:<13} {:>12} {:>12} {:>7}\n", "", "collective", "of", "planned", "measured",
                 "ratio");
    print_bytes("prefill", prefill);
    print_bytes("decode", decode);
    if (way.config.pp_size > 1) PLAIT_RETURN_IF_ERROR(print_bubble(ranks, way.config.pp_size, prompt, batch, context));
    std::fflush(stdout);
  }
  return print_planning_time();
}

}  // namespace plait
