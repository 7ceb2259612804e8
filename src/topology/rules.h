// Which parallel flags go together: one table of rules, evaluated before anything is allocated.
//
// A rule either refuses a configuration or forces a value; both say why, in the flags' own spelling. Pure functions.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "topology/model_facts.h"
#include "topology/parallel_config.h"

namespace plait {

// A rule that applied.
struct RuleFinding {
  const char* rule = "";
  bool refused = false;     // else: a value was forced
  std::string explanation;  // what was refused or forced, and why
};

struct ParallelVerdict {
  ParallelConfig config;  // with forced values
  std::vector<RuleFinding> findings;

  bool accepted() const;
  // All refusals in one kInvalid error; success if there are none.
  Status status() const;
};

// `facts` may be null: the rules that need a model are then left out.
ParallelVerdict judge(const ParallelConfig& asked, const ModelFacts* facts);

// The table itself, for documentation.
struct RuleInfo {
  const char* name;
  bool forces;
  const char* reason;
};
std::vector<RuleInfo> parallel_rules();

// True if the shared experts are cut over the expert block: all tokens are there, and each rank gets a part. Else each
// rank keeps all of them and computes them for its own rows.
bool shares_shared_expert(const ParallelConfig& config, const ModelFacts& facts);

}  // namespace plait
