#include "kernels/cuda/gemm_tuner.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/assert.h"
#include "kernels/cuda/gemm_chooser.h"

namespace plait::cuda {
namespace {

bool holds(const std::vector<GemmTable::Choice>& choices, int64_t rows) {
  return std::ranges::find(choices, rows, &GemmTable::Choice::rows) != choices.end();
}

// Appends those of `sorted` that are worth timing.
void add_worthy(const std::vector<TimedKernel>& sorted, const TuneOptions& options, std::vector<GemmKernel>& kernels) {
  size_t taken = 0;
  for (const auto& [kernel, seconds] : sorted) {
    if (taken >= options.fewest && seconds > options.within * sorted.front().seconds) break;
    if (std::ranges::find(kernels, kernel) == kernels.end()) kernels.push_back(kernel);
    ++taken;
  }
}

double best_of(const TimedClass& timed) {
  return std::ranges::min_element(timed.kernels, {}, &TimedKernel::seconds)->seconds;
}

const TimedKernel* find(const TimedClass& timed, const GemmKernel& kernel) {
  const auto found = std::ranges::find(timed.kernels, kernel, &TimedKernel::kernel);
  return found == timed.kernels.end() ? nullptr : &*found;
}

// What a kernel is worth to classes that have none yet: how many it serves, then how well.
struct Worth {
  size_t served = 0;
  double excess = 0;  // sum of its times over the best ones'

  bool better_than(const Worth& other) const {
    return served != other.served ? served > other.served : excess < other.excess;
  }
};

std::vector<TimedClass> in_order(const std::vector<TimedClass>& classes, const SummingOrder& order) {
  std::vector<TimedClass> kept;
  for (const TimedClass& timed : classes) {
    TimedClass each{.rows = timed.rows};
    std::ranges::copy_if(timed.kernels, std::back_inserter(each.kernels),
                         [&](const TimedKernel& t) { return summing_order(t.kernel) == order; });
    if (!each.kernels.empty()) kept.push_back(std::move(each));
  }
  return kept;
}

void merge(const std::vector<GemmTable::Choice>& choices, std::vector<GemmTable::Choice>& into) {
  for (const GemmTable::Choice& choice : choices)
    if (!holds(into, choice.rows)) into.push_back(choice);
  std::ranges::sort(into, {}, &GemmTable::Choice::rows);
}

class Tuner {
 public:
  Tuner(const DeviceModel& device, const TuneOptions& options, const TuneHooks& hooks, GemmTable& table)
      : device_(device), options_(options), hooks_(hooks), table_(table) {}

  Result<TuneReport> run(std::span<const TuneTask> tasks) {
    const double end = hooks_.now_seconds() + options_.seconds;
    for (const TuneTask& task : tasks) progress_.total += task.rows.size();
    for (size_t i = 0; i < tasks.size(); ++i) {
      const double now = hooks_.now_seconds(), share = (end - now) / static_cast<double>(tasks.size() - i);
      PLAIT_RETURN_IF_ERROR(run(tasks[i], now + share));
    }
    if (regrets_ > 0) report_.mean_regret = std::exp(log_regrets_ / static_cast<double>(regrets_));
    return report_;
  }

 private:
  Status run(const TuneTask& task, double end) {
    std::vector<int64_t> pending;
    std::ranges::copy_if(task.rows, std::back_inserter(pending),
                         [&](int64_t rows) { return !is_there(task.shape, rows); });
    report_.kept += task.rows.size() - pending.size();
    progress_.done += task.rows.size() - pending.size();
    std::vector<TimedClass> classes;
    for (const int64_t rows : pending) {
      if (hooks_.now_seconds() >= end) break;
      progress_.shape = &task.shape;
      progress_.rows = rows;
      if (hooks_.progress) hooks_.progress(progress_);
      PLAIT_ASSIGN_OR_RETURN(TimedClass timed, time(task.shape, rows));
      ++progress_.done;
      if (timed.kernels.empty()) continue;
      note_regret(task.shape, timed);
      classes.push_back(std::move(timed));
    }
    report_.tuned += classes.size();
    report_.left += pending.size() - classes.size();
    return classes.empty() ? Status() : enter(task.shape, classes);
  }

  bool is_there(const GemmShape& shape, int64_t rows) const {
    const GemmTable::Product* product = table_.find(shape);
    return product != nullptr && holds(product->fastest, rows) && holds(product->deterministic, rows);
  }

  Result<TimedClass> time(const GemmShape& shape, int64_t rows) {
    TimedClass timed{.rows = rows};
    std::vector<GemmKernel> kernels = tuning_candidates(device_, shape, rows, options_);
    std::erase_if(kernels, [&](const GemmKernel& kernel) { return std::ranges::find(wrong_, kernel) != wrong_.end(); });
    PLAIT_RETURN_IF_ERROR(hooks_.prepare(kernels));
    for (const GemmKernel& kernel : kernels) {
      auto seconds = hooks_.time(kernel, rows);
      ++report_.timed;
      if (seconds.has_value()) {
        timed.kernels.push_back({kernel, *seconds});
        continue;
      }
      if (seconds.error().kind != ErrorKind::kCorrupt) return std::move(seconds).error().within(name_of(kernel));
      wrong_.push_back(kernel);
      report_.wrong.push_back(fmt::format("{}: {}", name_of(kernel), seconds.error().message));
    }
    return timed;
  }

  void note_regret(const GemmShape& shape, const TimedClass& timed) {
    const TimedKernel* chosen = find(timed, choose_gemm(device_, shape, timed.rows));
    if (chosen == nullptr) return;
    const double regret = chosen->seconds / best_of(timed);
    report_.worst_regret = std::max(report_.worst_regret, regret);
    log_regrets_ += std::log(regret);
    ++regrets_;
  }

  Status enter(const GemmShape& shape, const std::vector<TimedClass>& classes) {
    auto product = std::ranges::find(table_.products, shape, &GemmTable::Product::shape);
    if (product == table_.products.end()) product = table_.products.insert(product, {.shape = shape});
    merge(choose_few(classes, options_.equal), product->fastest);
    merge(choose_few(in_order(classes, deterministic_order(shape)), options_.equal), product->deterministic);
    return hooks_.save(table_);
  }

  const DeviceModel& device_;
  const TuneOptions& options_;
  const TuneHooks& hooks_;
  GemmTable& table_;
  TuneReport report_;
  TuneProgress progress_;
  std::vector<GemmKernel> wrong_;
  double log_regrets_ = 0;
  size_t regrets_ = 0;
};

}  // namespace

std::vector<GemmKernel> tuning_candidates(const DeviceModel& device, const GemmShape& shape, int64_t rows,
                                          const TuneOptions& options) {
  const SummingOrder order = deterministic_order(shape);
  std::vector<TimedKernel> sorted, deterministic;
  for (const GemmKernel& kernel : all_candidates(device, shape, rows)) {
    sorted.push_back({kernel, expected_seconds(device, kernel, rows)});
    if (summing_order(kernel) == order) deterministic.push_back(sorted.back());
  }
  std::ranges::stable_sort(sorted, {}, &TimedKernel::seconds);
  std::ranges::stable_sort(deterministic, {}, &TimedKernel::seconds);
  std::vector<GemmKernel> kernels;
  add_worthy(sorted, options, kernels);
  add_worthy(deterministic, options, kernels);
  return kernels;
}

std::vector<GemmTable::Choice> choose_few(std::span<const TimedClass> classes, double equal) {
  std::vector<GemmTable::Choice> choices;
  std::vector<const TimedClass*> open;
  for (const TimedClass& timed : classes) {
    PLAIT_ASSERT(!timed.kernels.empty(), "a class without times");
    open.push_back(&timed);
  }
  const auto serves = [&](const TimedClass& timed, const GemmKernel& kernel) -> const TimedKernel* {
    const TimedKernel* found = find(timed, kernel);
    return found != nullptr && found->seconds <= (1 + equal) * best_of(timed) ? found : nullptr;
  };
  while (!open.empty()) {
    // Of what any open class would take; the first of equally good ones.
    const GemmKernel* best = nullptr;
    Worth worth_of_best;
    for (const TimedClass* from : open)
      for (const TimedKernel& candidate : from->kernels) {
        Worth worth;
        for (const TimedClass* timed : open)
          if (const TimedKernel* found = serves(*timed, candidate.kernel)) {
            ++worth.served;
            worth.excess += found->seconds / best_of(*timed);
          }
        if (worth.served == 0 || (best != nullptr && !worth.better_than(worth_of_best))) continue;
        best = &candidate.kernel;
        worth_of_best = worth;
      }
    const GemmKernel chosen = *best;
    std::erase_if(open, [&](const TimedClass* timed) {
      const TimedKernel* found = serves(*timed, chosen);
      if (found != nullptr) choices.push_back({timed->rows, chosen, found->seconds});
      return found != nullptr;
    });
  }
  std::ranges::sort(choices, {}, &GemmTable::Choice::rows);
  return choices;
}

Result<TuneReport> tune(const DeviceModel& device, std::span<const TuneTask> tasks, const TuneOptions& options,
                        const TuneHooks& hooks, GemmTable& table) {
  return Tuner(device, options, hooks, table).run(tasks);
}

}  // namespace plait::cuda
