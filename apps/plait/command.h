// The subcommands. Each runs in the main thread and returns the process' exit status.
#pragma once

#include <string_view>

#include "settings.h"

namespace plait::app {

constexpr int kExitSuccess = 0;
constexpr int kExitFailure = 1;  // it ran and failed; `check`: the checkpoint cannot be used
constexpr int kExitUsage = 2;    // the command line is wrong

// Of a command whose every error is a failure: says it on standard error.
inline int exit_status(std::string_view command, const Status& status) {
  if (status.has_value()) return kExitSuccess;
  fmt::print(stderr, "plait {}: {}\n", command, status.error().message);
  return kExitFailure;
}

int run_serve(const Settings& settings);
int run_generate(const Settings& settings);
int run_bench(const Settings& settings);
int run_check(const Settings& settings);
int run_plan(const Settings& settings);
int run_compile(const Settings& settings);

}  // namespace plait::app
