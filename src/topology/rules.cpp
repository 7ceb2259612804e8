#include "topology/rules.h"

#include <fmt/ranges.h>

namespace plait {
namespace {

using Config = ParallelConfig;
using Facts = ModelFacts;

// `applies` is asked only if every refusal above it was silent, so that later rules may divide by what earlier ones
// checked. Rules with `needs_model` are skipped where there is none.
struct Rule {
  const char* name;
  const char* reason;
  bool needs_model;
  bool (*applies)(const Config&, const Facts&);
  std::string (*says)(const Config&, const Facts&);
  void (*force)(Config&);  // nullptr: refuse
};

constexpr bool kNeedsModel = true, kAnyModel = false;

int attention_ranks(const Config& c) {
  return c.attn_dp_size() * c.attn_cp_size;
}

bool nests(int64_t a, int64_t b) {
  return a % b == 0 || b % a == 0;
}

struct Block {
  const char* what;
  int size;
};

// The runs of neighbouring ranks whose tokens some stage wants together.
std::array<Block, 4> blocks(const Config& c) {
  return {{{"attention-TP group", c.attn_tp_size()},
           {"data-parallel rank", c.attn_tp_size() * c.attn_cp_size},
           {"expert block (tp / moe_dp)", c.moe_block_size()},
           {"dense-MLP group", c.dense_tp_size()}}};
}

std::optional<std::pair<Block, Block>> crossing_blocks(const Config& c) {
  const auto all = blocks(c);
  for (size_t i = 0; i < all.size(); ++i)
    for (size_t j = i + 1; j < all.size(); ++j)
      if (!nests(all[i].size, all[j].size)) return std::pair{all[i], all[j]};
  return std::nullopt;
}

// Parts in which a width can be cut: columns that share an FP8 scale stay together.
int64_t parts_of(int64_t width, int64_t block) {
  return block > 0 ? (width + block - 1) / block : width;
}

std::string undivided(const char* what, int64_t count, const char* flag, int64_t ranks) {
  return fmt::format("{} {} cannot be divided by {} = {}", what, count, flag, ranks);
}

std::string too_few_parts(const char* what, int64_t width, int64_t block, const char* ranks_name, int64_t ranks) {
  const std::string unit = block > 0 ? fmt::format("blocks of {} columns that share an FP8 scale", block) : "columns";
  return fmt::format("{} {} has {} {}, fewer than {} = {} ranks", what, width, parts_of(width, block), unit, ranks_name,
                     ranks);
}

constexpr Rule kRules[] = {
    {"sizes-positive", "a size counts ranks", kAnyModel,
     [](const Config& c, const Facts&) {
       return std::min({c.tp_size, c.pp_size, c.dp_size, c.ep_size, c.moe_dp_size, c.attn_cp_size, c.nnodes,
                        c.dense_tp_size()}) < 1;
     },
     [](const Config&, const Facts&) { return std::string("every parallel size and --nnodes must be at least 1"); },
     nullptr},

    {"dp-attention-alone", "with one data-parallel rank there is nothing to split", kAnyModel,
     [](const Config& c, const Facts&) { return c.enable_dp_attention && c.dp_size == 1; },
     [](const Config&, const Facts&) {
       return std::string("--enable-dp-attention is switched off: --dp-size is 1, so there is nothing to split");
     },
     [](Config& c) { c.enable_dp_attention = false; }},
    {"dp-lm-head-without-split", "a head inside the attention-TP group is the same as one over all ranks there",
     kAnyModel, [](const Config& c, const Facts&) { return c.enable_dp_lm_head && attention_ranks(c) == 1; },
     [](const Config&, const Facts&) {
       return std::string(
           "--enable-dp-lm-head is switched off: without DP attention or context parallelism the "
           "attention-TP group is the whole stage");
     },
     [](Config& c) { c.enable_dp_lm_head = false; }},
    {"cp-size-means-cp", "--attn-cp-size asks for context parallelism", kAnyModel,
     [](const Config& c, const Facts&) { return c.attn_cp_size > 1 && !c.enable_prefill_cp; },
     [](const Config& c, const Facts&) {
       return fmt::format("--enable-prefill-cp is switched on: --attn-cp-size {} asks for it", c.attn_cp_size);
     },
     [](Config& c) { c.enable_prefill_cp = true; }},
    {"cp-needs-width", "one context rank holds all rows", kAnyModel,
     [](const Config& c, const Facts&) { return c.attn_cp_size == 1 && c.enable_prefill_cp; },
     [](const Config&, const Facts&) {
       return std::string(
           "--enable-prefill-cp is switched off: --attn-cp-size is 1; set it to the number of ranks that "
           "should share a prompt");
     },
     [](Config& c) { c.enable_prefill_cp = false; }},
    {"cp-strategy-default", "interleave balances causal work to one token", kAnyModel,
     [](const Config& c, const Facts&) { return c.attn_cp_size > 1 && !c.cp_strategy; },
     [](const Config&, const Facts&) {
       return std::string(
           "--cp-strategy interleave is chosen: it balances causal work to one token; zigzag is the "
           "other");
     },
     [](Config& c) { c.cp_strategy = CpStrategy::kInterleave; }},
    {"cp-options-without-cp", "they concern context parallelism only", kAnyModel,
     [](const Config& c, const Facts&) {
       return c.attn_cp_size == 1 && (c.cp_strategy.has_value() || c.prefill_cp_kv_sharded);
     },
     [](const Config&, const Facts&) {
       return std::string("--cp-strategy and --prefill-cp-kv-sharded are ignored: --attn-cp-size is 1");
     },
     [](Config& c) {
       c.cp_strategy.reset();
       c.prefill_cp_kv_sharded = false;
     }},
    {"deepep-mode-without-a2a", "it chooses between two forms of dispatch", kAnyModel,
     [](const Config& c, const Facts&) {
       return c.moe_a2a_backend == MoeA2a::kNone && c.deepep_mode != DeepepMode::kAuto;
     },
     [](const Config& c, const Facts&) {
       return fmt::format("--deepep-mode {} is ignored: --moe-a2a-backend is none", name_of(c.deepep_mode));
     },
     [](Config& c) { c.deepep_mode = DeepepMode::kAuto; }},

    {"hosts-divide-world", "every host runs the same number of ranks", kAnyModel,
     [](const Config& c, const Facts&) { return c.world_size() % c.nnodes != 0; },
     [](const Config& c, const Facts&) {
       return fmt::format("--tp-size {} times --pp-size {} = {} ranks cannot be divided over --nnodes {}", c.tp_size,
                          c.pp_size, c.world_size(), c.nnodes);
     },
     nullptr},
    {"node-rank-range", "hosts are numbered from 0", kAnyModel,
     [](const Config& c, const Facts&) { return c.node_rank < 0 || c.node_rank >= c.nnodes; },
     [](const Config& c, const Facts&) {
       return fmt::format("--node-rank {} is not one of the --nnodes {} hosts: they are numbered from 0", c.node_rank,
                          c.nnodes);
     },
     nullptr},
    {"hosts-need-address", "hosts must know where to meet", kAnyModel,
     [](const Config& c, const Facts&) { return c.nnodes > 1 && c.dist_init_addr.empty(); },
     [](const Config& c, const Facts&) {
       return fmt::format("--nnodes {} needs --dist-init-addr HOST:PORT of the first host, the same on every host",
                          c.nnodes);
     },
     nullptr},
    {"replicas-on-one-host", "replicas share nothing, so each host can run its own server", kAnyModel,
     [](const Config& c, const Facts&) { return c.replicas() > 1 && c.nnodes > 1; },
     [](const Config& c, const Facts&) {
       return fmt::format(
           "--dp-size {} without --enable-dp-attention makes independent replicas, which --nnodes {} "
           "cannot spread: start one server per host behind a router, or add --enable-dp-attention",
           c.dp_size, c.nnodes);
     },
     nullptr},

    {"attention-divides-tp", "attention's data, context and tensor parallelism share the stage's ranks", kAnyModel,
     [](const Config& c, const Facts&) { return c.tp_size % attention_ranks(c) != 0; },
     [](const Config& c, const Facts&) {
       return fmt::format(
           "--tp-size {} cannot be divided by {}--attn-cp-size {}: attention-TP width is what is left", c.tp_size,
           c.enable_dp_attention ? fmt::format("--dp-size {} times ", c.dp_size) : std::string(), c.attn_cp_size);
     },
     nullptr},
    {"moe-dp-divides-tp", "copies of the experts share the stage's ranks evenly", kAnyModel,
     [](const Config& c, const Facts&) { return c.tp_size % c.moe_dp_size != 0; },
     [](const Config& c, const Facts&) {
       return fmt::format("--tp-size {} cannot be divided by --moe-dp-size {}", c.tp_size, c.moe_dp_size);
     },
     nullptr},
    {"a2a-spreads-experts", "dispatch sends a token to the rank that owns the whole expert", kAnyModel,
     [](const Config& c, const Facts&) {
       return c.moe_a2a_backend == MoeA2a::kAllToAll && c.ep_size != c.moe_block_size();
     },
     [](const Config& c, const Facts&) {
       return fmt::format("--ep-size {} becomes {}: with --moe-a2a-backend a2a every rank owns whole experts",
                          c.ep_size, c.moe_block_size());
     },
     [](Config& c) { c.ep_size = c.moe_block_size(); }},
    {"experts-divide-tp", "experts' data, expert and tensor parallelism share the stage's ranks", kAnyModel,
     [](const Config& c, const Facts&) { return c.tp_size % (c.ep_size * c.moe_dp_size) != 0; },
     [](const Config& c, const Facts&) {
       return fmt::format("--tp-size {} cannot be divided by --ep-size {} times --moe-dp-size {}", c.tp_size, c.ep_size,
                          c.moe_dp_size);
     },
     nullptr},
    {"dense-divides-tp", "groups of dense layers share the stage's ranks evenly", kAnyModel,
     [](const Config& c, const Facts&) { return c.tp_size % c.dense_tp_size() != 0; },
     [](const Config& c, const Facts&) {
       return fmt::format("--tp-size {} cannot be divided by --moe-dense-tp-size {}", c.tp_size, c.dense_tp_size());
     },
     nullptr},
    {"blocks-nest", "tokens move between blocks of neighbouring ranks; one must contain the other", kAnyModel,
     [](const Config& c, const Facts&) { return crossing_blocks(c).has_value(); },
     [](const Config& c, const Facts&) {
       const auto [a, b] = *crossing_blocks(c);
       return fmt::format(
           "a {} has {} ranks and a {} has {}: neither number divides the other, so their groups would "
           "cut across each other; change --dp-size, --attn-cp-size, --moe-dp-size or "
           "--moe-dense-tp-size",
           a.what, a.size, b.what, b.size);
     },
     nullptr},

    {"layers-fill-stages", "a stage without layers only adds a wait", kNeedsModel,
     [](const Config& c, const Facts& f) { return f.layers < c.pp_size; },
     [](const Config& c, const Facts& f) {
       return fmt::format("--pp-size {} is more than the model's {} layers", c.pp_size, f.layers);
     },
     nullptr},
    {"no-experts", "there is nothing to distribute", kNeedsModel,
     [](const Config& c, const Facts& f) {
       return f.experts == 0 && (c.ep_size > 1 || c.moe_dp_size > 1 || c.moe_a2a_backend != MoeA2a::kNone);
     },
     [](const Config&, const Facts&) {
       return std::string(
           "--ep-size, --moe-dp-size and --moe-a2a-backend need a model with experts; this one has none");
     },
     nullptr},
    {"heads-divide", "a head is computed by one rank", kNeedsModel,
     [](const Config& c, const Facts& f) { return f.heads % c.attn_tp_size() != 0; },
     [](const Config& c, const Facts& f) {
       return undivided("attention heads", f.heads, "attention-TP width", c.attn_tp_size());
     },
     nullptr},
    {"experts-divide-ep", "every rank of an expert-parallel group has the same number of experts", kNeedsModel,
     [](const Config& c, const Facts& f) { return f.experts % c.ep_size != 0; },
     [](const Config& c, const Facts& f) { return undivided("routed experts", f.experts, "--ep-size", c.ep_size); },
     nullptr},
    {"expert-width-parts", "an expert is cut over its tensor-parallel ranks, and each must get a part", kNeedsModel,
     [](const Config& c, const Facts& f) {
       return f.experts > 0 && parts_of(f.expert_intermediate, f.fp8_block) < c.moe_tp_size();
     },
     [](const Config& c, const Facts& f) {
       return too_few_parts("moe_intermediate_size", f.expert_intermediate, f.fp8_block,
                            "expert-TP width (tp / ep / moe_dp)", c.moe_tp_size()) +
              "; a larger --ep-size lowers it";
     },
     nullptr},
    {"dense-width-parts", "a dense MLP is cut over its group, and each rank must get a part", kNeedsModel,
     [](const Config& c, const Facts& f) {
       return (f.experts == 0 || f.first_expert_layer > 0 || f.expert_layer_stride > 1) &&
              parts_of(f.dense_intermediate, f.fp8_block) < c.dense_tp_size();
     },
     [](const Config& c, const Facts& f) {
       return too_few_parts("intermediate_size", f.dense_intermediate, f.fp8_block,
                            "dense-MLP width (--moe-dense-tp-size, else --tp-size)", c.dense_tp_size()) +
              "; set a smaller --moe-dense-tp-size";
     },
     nullptr},
};

}  // namespace

bool ParallelVerdict::accepted() const {
  return std::none_of(findings.begin(), findings.end(), [](const RuleFinding& finding) { return finding.refused; });
}

Status ParallelVerdict::status() const {
  std::vector<std::string> reasons;
  for (const RuleFinding& finding : findings)
    if (finding.refused) reasons.push_back(finding.explanation);
  if (reasons.empty()) return {};
  return invalid(fmt::format("{}", fmt::join(reasons, "; ")));
}

ParallelVerdict judge(const ParallelConfig& asked, const ModelFacts* facts) {
  ParallelVerdict verdict{asked, {}};
  const ModelFacts none;
  bool structure_holds = true;
  for (const Rule& rule : kRules) {
    // Model rules are independent of each other: all of them are told. The others rest on those before them.
    if (rule.needs_model && (!facts || !structure_holds)) continue;
    if (!rule.needs_model && !structure_holds) continue;
    const ModelFacts& known = facts ? *facts : none;
    if (!rule.applies(verdict.config, known)) continue;
    verdict.findings.push_back({rule.name, rule.force == nullptr, rule.says(verdict.config, known)});
    if (rule.force) {
      rule.force(verdict.config);
    } else if (!rule.needs_model) {
      structure_holds = false;
    }
  }
  return verdict;
}

std::vector<RuleInfo> parallel_rules() {
  std::vector<RuleInfo> infos;
  for (const Rule& rule : kRules) infos.push_back({rule.name, rule.force != nullptr, rule.reason});
  return infos;
}

bool shares_shared_expert(const ParallelConfig& config, const ModelFacts& facts) {
  return config.moe_a2a_backend == MoeA2a::kNone &&
         parts_of(facts.shared_intermediate, facts.fp8_block) >= config.moe_block_size();
}

}  // namespace plait
