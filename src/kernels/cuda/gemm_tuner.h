// Fills a GemmTable: which kernels are worth timing, in which order, for how long, and which of them are chosen.
//
// What times a kernel, the clock and where the table is kept come from outside (TuneHooks): on a device in `plait bench
// --tune`, in tests without one. One thread.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/gemm_table.h"

namespace plait::cuda {

struct TuneTask {
  GemmShape shape;
  std::vector<int64_t> rows;  // largest of their classes, ascending
};

struct TuneOptions {
  double seconds = 300;  // no class of rows is begun later
  // Of the candidates those are timed that the model expects to take at most `within` times the least, and never fewer
  // than `fewest`: of all, and again of those in the deterministic order.
  double within = 1.5;
  size_t fewest = 8;
  // Times that differ by less are equal: of equal kernels the one is chosen that serves most classes, since each kernel
  // is one to compile.
  double equal = 0.02;
};

struct TuneProgress {
  size_t done = 0, total = 0;  // classes of rows
  const GemmShape* shape = nullptr;
  int64_t rows = 0;
};

struct TuneHooks {
  // Called before kernels are timed, with those of a class; most of them have come before.
  std::function<Status(std::span<const GemmKernel> kernels)> prepare;
  // Seconds. kCorrupt: its results are wrong; the kernel is set aside. Another error ends the tuning.
  std::function<Result<double>(const GemmKernel& kernel, int64_t rows)> time;
  std::function<double()> now_seconds;
  std::function<Status(const GemmTable& table)> save;  // after each task
  std::function<void(const TuneProgress& progress)> progress;
};

struct TuneReport {
  size_t kept = 0;                 // classes that the table had before
  size_t tuned = 0;                // that were timed now
  size_t left = 0;                 // for which there was no time
  size_t timed = 0;                // kernels, each once for each class
  std::vector<std::string> wrong;  // names of kernels whose results were wrong, with why
  // Of a class, the model's choice over the best: on average (geometric) and at most.
  double mean_regret = 1, worst_regret = 1;
};

// Those worth timing, the model's favourite first.
std::vector<GemmKernel> tuning_candidates(const DeviceModel& device, const GemmShape& shape, int64_t rows,
                                          const TuneOptions& options);

struct TimedKernel {
  GemmKernel kernel;
  double seconds = 0;
};
struct TimedClass {
  int64_t rows = 0;
  std::vector<TimedKernel> kernels;  // not empty
};
// For each class a kernel that takes at most 1 + `equal` times as long as its fastest one, with few kernels in all.
std::vector<GemmTable::Choice> choose_few(std::span<const TimedClass> classes, double equal);

// `device`: without a table. Adds to `table`, which may hold some of the classes already, as after a tuning that was
// interrupted: these are kept. Each task gets an equal part of the time that is left. Errors: the hooks'; the table
// then has all tasks before.
Result<TuneReport> tune(const DeviceModel& device, std::span<const TuneTask> tasks, const TuneOptions& options,
                        const TuneHooks& hooks, GemmTable& table);

}  // namespace plait::cuda
