// The registry of flags: one row each, shared by the subcommands. Parsing, `--help` and the dump of what differs from
// the defaults are all made from it (command_line.h).
//
// Rows point into the Settings and FlagWords that they were made for, which outlive them. Main thread only.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "base/error.h"
#include "settings.h"

namespace plait::app {

enum Command : unsigned { kServe = 1, kGenerate = 2, kBench = 4, kCheck = 8, kPlan = 16, kCompile = 32 };
using Commands = unsigned;  // set of Command

struct IntegerRange {
  int64_t low, high;
};
struct RealRange {
  double low, high;
};
struct Words {
  std::vector<std::string> allowed;
};

// What a flag writes to. A bool takes no argument, a vector may be given several times.
using Target = std::variant<bool*, int*, uint16_t*, int64_t*, uint64_t*, double*, std::chrono::seconds*, std::string*,
                            std::vector<std::string>*>;

struct Flag {
  Commands commands;
  const char* group;
  std::string names;  // first the documented one, then aliases: "--model-path,--model"
  Target target;
  std::string help;
  std::variant<std::monostate, IntegerRange, RealRange, Words> accepts;
};

// Words that stand for values of other types, kept until parse_command_line translates them.
struct FlagWords {
  std::string load_format = "auto";
  std::string kernels = "fast";
  std::string schedule_policy = "fcfs";
  std::string json_model_override_args = "{}";
  bool disable_radix_cache = false;
  bool disable_overlap_schedule = false;
  bool disable_metrics = false;
  std::string seed;  // empty: draw one
  // Lists are typed as "1,4,16".
  std::string bench_weights = "bf16,fp8";
  std::string bench_prefill = "128,512,2048";
  std::string bench_batch = "1,4,16,64";
  std::string bench_context = "128,8192";
  std::string bench_format = "table";
  std::string bench_rows;
  std::string bench_sizes = "model";
  double bench_seconds = 0;   // 0: what is usual
  int moe_dense_tp_size = 0;  // 0: none given
  std::string moe_a2a_backend = "none";
  std::string deepep_mode = "auto";
  std::string cp_strategy;
  std::string plan_step = "prefill";
  std::string disaggregation_mode = "null";
  std::string load_balance_method = "auto";
};

std::vector<Flag> flag_registry(Settings& settings, FlagWords& words);

// Those of `plan`, and the parallel flags of `plan` and `check` (plan_flags.cpp).
void add_parallel_flags(std::vector<Flag>& flags, Settings& settings, FlagWords& words);
Status interpret_parallel(const FlagWords& words, Settings& settings);

}  // namespace plait::app
