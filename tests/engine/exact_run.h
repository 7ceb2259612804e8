// One configuration of ranks through the steps of a serving engine, compared bit for bit with one rank.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/rank_team.h"
#include "tests/engine/exact_model.h"

namespace plait::testing {

// Loaded shards of one model, which teams that follow each other take turns to use. One thread.
class ShardCache {
 public:
  explicit ShardCache(const ModelConfig& config, const TensorSet& weights) : config_(config), weights_(weights) {}
  // Belongs to the cache, which gives it to nobody else until it is destroyed.
  std::unique_ptr<Model> take(const ModelShard& shard);
  // Forgets shards that nobody uses if there are many.
  void trim();

 private:
  struct Entry {
    std::unique_ptr<Model> model;
    bool taken = false;
  };
  class Loan;

  const ModelConfig& config_;
  const TensorSet& weights_;
  std::map<std::vector<int64_t>, std::vector<std::unique_ptr<Entry>>> entries_;
  size_t held_ = 0;
};

struct ExactCase {
  const ExactModel* model = nullptr;
  ParallelConfig parallel;
  PaddingMode padding = PaddingMode::kMaxLen;
  int64_t number = 0;  // varies which data-parallel rank has the long prompt
  // Faults, and other choices of the planner.
  std::function<Plan(Plan plan)> replan;
  std::function<std::unique_ptr<Model>(int rank, const ModelShard& shard)> make_rank;  // absent: of the cache
};

struct ExactOutcome {
  std::string difference;  // the first; empty: none
  std::string error;       // that ended the run
  int64_t steps = 0;
  int64_t logit_rows = 0;  // compared
};

ExactOutcome run_exact(const ExactCase& exact_case, ShardCache& shards);

}  // namespace plait::testing
