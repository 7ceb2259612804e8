#include "tests/engine/exact_run.h"

#include <cstring>
#include <numeric>

#include <fmt/format.h>

#include "base/assert.h"
#include "engine/engine_setup.h"
#include "model/model_facts.h"
#include "tests/engine/borrowed_model.h"

namespace plait::testing {
namespace {

constexpr int64_t kPages = 128, kPageTokens = 4, kSequencesAtOnce = 32;
constexpr int64_t kLongLoad = 97;
// More shards than a few configurations in a row use are not worth their memory.
constexpr size_t kMostShards = 256;

std::vector<int64_t> key_of(const ModelShard& shard) {
  std::vector<int64_t> key{shard.layers.begin, shard.layers.end};
  for (const ShardPart& part : {shard.heads, shard.dense_width, shard.shared_width, shard.experts, shard.expert_width,
                                shard.embedding, shard.head}) {
    key.push_back(part.index);
    key.push_back(part.count);
  }
  return key;
}

// A sequence on its way through a data-parallel rank.
struct Live {
  int id = 0;
  std::vector<int32_t> pages;
  int64_t cached = 0;
};

// Whose logits a row of the answer should be.
struct Wanted {
  int id = 0;
  int64_t position = 0;
};

// The sequences of one data-parallel rank, batched as a scheduler does: decoding ones first, then what is left of
// prompts that have begun, then new prompts.
class RankLoad {
 public:
  // Ranks begin with sequences of their own; which these are varies with `number`.
  RankLoad(const ExactModel& model, int dp, int dp_ranks, int64_t number)
      : model_(model),
        next_id_(dp + static_cast<int>(number % std::ssize(model.sequences)) * dp_ranks),
        dp_ranks_(dp_ranks) {}

  int64_t decoding() const {
    return std::count_if(live_.begin(), live_.end(), [&](const Live& live) { return decodes(live); });
  }

  // A step of `rows` rows. `step` varies which logits are wanted: of all rows, of last ones, of some sequences none.
  Step next(uint64_t step, int64_t rows, std::vector<Wanted>& wanted) {
    StepBuilder builder(step);
    wanted.clear();
    for (const bool decode : {true, false})
      for (Live& live : live_)
        if (decodes(live) == decode && rows > 0) rows -= add(live, decode ? 1 : rows, step, builder, wanted);
    while (rows > 0) {
      live_.push_back({next_id_ % static_cast<int>(model_.sequences.size()), {}, 0});
      next_id_ += dp_ranks_;
      rows -= add(live_.back(), rows, step, builder, wanted);
    }
    std::erase_if(live_, [&](const Live& live) { return live.cached == sequence(live).length(); });
    return std::move(builder).build();
  }

 private:
  const ExactSequence& sequence(const Live& live) const { return model_.sequences[live.id]; }
  bool decodes(const Live& live) const { return live.cached >= sequence(live).prompt_tokens; }

  int64_t add(Live& live, int64_t most, uint64_t step, StepBuilder& builder, std::vector<Wanted>& wanted) {
    const ExactSequence& from = sequence(live);
    const int64_t count = decodes(live) ? 1 : std::min(most, from.prompt_tokens - live.cached);
    while (std::ssize(live.pages) * kPageTokens < live.cached + count) {
      PLAIT_ASSERT(next_page_ < kPages, "a run needs more pages");
      live.pages.push_back(static_cast<int32_t>(next_page_++ * 37 % kPages));
    }
    const int64_t choice = static_cast<int64_t>(step) % 3;
    const int64_t logits = choice == 0 ? count : choice == 1 ? 1 : live.id % 2;
    builder.add(std::span(from.tokens).subspan(live.cached, count), live.cached, live.pages, from.prompt_tokens,
                logits);
    live.cached += count;
    for (int64_t i = logits; i > 0; --i) wanted.push_back({live.id, live.cached - i});
    return count;
  }

  const ExactModel& model_;
  std::vector<Live> live_;
  int64_t next_page_ = 0;
  int next_id_;
  const int dp_ranks_;
};

// Rows of each data-parallel rank in each step: first one rank has 97, then the counts {0, 1, cp - 1, cp, cp + 1, 7}
// pass over the ranks until each was somebody's, unequal ones side by side. A step of decoding rows alone follows.
std::vector<std::vector<int64_t>> loads(const ExactCase& exact_case) {
  const int64_t cp = exact_case.parallel.attn_cp_size, dp = exact_case.parallel.attn_dp_size();
  std::vector<int64_t> counts;
  for (const int64_t count : {int64_t{7}, cp + 1, cp, int64_t{1}, cp - 1, int64_t{0}})
    if (std::find(counts.begin(), counts.end(), count) == counts.end() && (count > 0 || dp > 1))
      counts.push_back(count);
  const int64_t kinds = std::ssize(counts);
  std::vector<std::vector<int64_t>> steps(1);
  for (int64_t rank = 0; rank < dp; ++rank)
    steps.front().push_back(rank == exact_case.number % dp ? kLongLoad : counts[rank % kinds]);
  for (int64_t given = 0; given < std::max(kinds, 2 * dp); given += dp) {
    std::vector<int64_t>& rows = steps.emplace_back();
    for (int64_t rank = 0; rank < dp; ++rank) rows.push_back(counts[(given + rank + given / kinds) % kinds]);
  }
  return steps;
}

class ExactRun {
 public:
  ExactRun(const ExactCase& exact_case, ShardCache& shards)
      : case_(exact_case), model_(*exact_case.model), dp_ranks_(exact_case.parallel.attn_dp_size()) {
    for (int dp = 0; dp < dp_ranks_; ++dp) loads_.emplace_back(model_, dp, dp_ranks_, exact_case.number);
    wanted_.resize(dp_ranks_);
    differences_.resize(dp_ranks_);
    compared_.resize(dp_ranks_);
    const Topology topology(exact_case.parallel);
    const ModelFacts facts = model_facts(model_.config);
    std::vector<std::unique_ptr<Model>> models;
    for (int rank = 0; rank < topology.world(); ++rank) {
      const ModelShard shard = shard_of(topology, facts, rank);
      models.push_back(exact_case.make_rank ? exact_case.make_rank(rank, shard) : shards.take(shard));
    }
    auto team = RankTeam::create(model_.config,
                                 {.parallel = exact_case.parallel,
                                  .model = exact_options(),
                                  .threads = 1,
                                  .padding = exact_case.padding,
                                  .replan = exact_case.replan},
                                 std::move(models));
    if (team.has_error()) {
      outcome_.error = team.error().message;
      return;
    }
    team_ = std::move(team).value();
    team_->allocate_kv(kPages, kPageTokens, kSequencesAtOnce);
  }

  ExactOutcome run() {
    for (const std::vector<int64_t>& rows : loads(case_))
      if (!step(rows)) return outcome_;
    std::vector<int64_t> decoding;
    for (const RankLoad& load : loads_) decoding.push_back(load.decoding());
    step(decoding);
    return outcome_;
  }

 private:
  // False: something differs, or failed.
  bool step(const std::vector<int64_t>& rows) {
    if (!outcome_.error.empty()) return false;
    std::vector<Step> steps;
    for (int dp = 0; dp < dp_ranks_; ++dp)
      steps.push_back(loads_[dp].next(static_cast<uint64_t>(outcome_.steps), rows[dp], wanted_[dp]));
    std::vector<const Step*> of_dp_ranks;
    for (const Step& each : steps) of_dp_ranks.push_back(&each);
    std::fill(compared_.begin(), compared_.end(), 0);
    const Status status = team_->run(of_dp_ranks, [&](int dp, ThreadPool&, Rows logits) { compare(dp, logits); });
    if (status.has_error()) outcome_.error = status.error().message;
    for (int dp = 0; dp < dp_ranks_; ++dp) {
      outcome_.logit_rows += compared_[dp];
      if (outcome_.error.empty() && compared_[dp] != std::ssize(wanted_[dp]))
        differences_[dp] = fmt::format("{} rows of logits instead of {}", compared_[dp], wanted_[dp].size());
      if (!differences_[dp].empty() && outcome_.difference.empty())
        outcome_.difference = fmt::format("step {} with [{}] rows, data-parallel rank {}: {}", outcome_.steps,
                                          fmt::join(rows, " "), dp, differences_[dp]);
    }
    ++outcome_.steps;
    return outcome_.error.empty() && outcome_.difference.empty();
  }

  // On the rank's thread; ranks write to their own places.
  void compare(int dp, Rows logits) {
    compared_[dp] = logits.rows;
    if (logits.rows != std::ssize(wanted_[dp])) return;
    for (int64_t i = 0; i < logits.rows; ++i) {
      const auto [id, position] = wanted_[dp][i];
      const std::span<const float> expected = model_.expected(id, position);
      if (std::memcmp(logits.row(i), expected.data(), expected.size_bytes()) == 0) continue;
      const auto at = std::mismatch(expected.begin(), expected.end(), logits.row(i)).first - expected.begin();
      differences_[dp] = fmt::format("logit {} of position {} of sequence {} is {}, one rank has {}", at, position, id,
                                     logits.row(i)[at], expected[at]);
      return;
    }
  }

  const ExactCase& case_;
  const ExactModel& model_;
  const int dp_ranks_;
  std::unique_ptr<RankTeam> team_;
  std::vector<RankLoad> loads_;              // [dp]
  std::vector<std::vector<Wanted>> wanted_;  // [dp][logit rows]
  std::vector<std::string> differences_;     // [dp]
  std::vector<int64_t> compared_;            // [dp]
  ExactOutcome outcome_;
};

}  // namespace

class ShardCache::Loan : public BorrowedModel {
 public:
  explicit Loan(Entry& entry) : BorrowedModel(*entry.model), entry_(entry) { entry_.taken = true; }
  ~Loan() override { entry_.taken = false; }

 private:
  Entry& entry_;
};

std::unique_ptr<Model> ShardCache::take(const ModelShard& shard) {
  auto& alike = entries_[key_of(shard)];
  const auto free = std::find_if(alike.begin(), alike.end(), [](const auto& entry) { return !entry->taken; });
  if (free != alike.end()) return std::make_unique<Loan>(**free);
  ModelOptions options = exact_options();
  options.shard = shard;
  auto entry = std::make_unique<Entry>();
  entry->model = make_model(config_, options).value();
  const Status loaded = weights_.load(*entry->model);
  if (loaded.has_error()) throw std::runtime_error(loaded.error().message);
  alike.push_back(std::move(entry));
  ++held_;
  return std::make_unique<Loan>(*alike.back());
}

void ShardCache::trim() {
  if (held_ < kMostShards) return;
  for (auto& [key, alike] : entries_) held_ -= std::erase_if(alike, [](const auto& entry) { return !entry->taken; });
}

ExactOutcome run_exact(const ExactCase& exact_case, ShardCache& shards) {
  shards.trim();
  return ExactRun(exact_case, shards).run();
}

}  // namespace plait::testing
