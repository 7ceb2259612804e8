// The tuner's decisions, with a timer and a clock that are numbers.
#include "kernels/cuda/gemm_tuner.h"

#include <map>
#include <set>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/cuda/gemm_chooser.h"

namespace plait::cuda {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const GemmShape kNarrow{.n = 576, .k = 7168}, kWide{.n = 4096, .k = 7168};
const GemmShape kMasked{.rows = GemmRows::kMasked, .n = 4096, .k = 7168, .groups = 32};

const DeviceModel& h200() {
  static const DeviceModel device = *find_device("h200");
  return device;
}

// Times that differ from the model's by up to a third either way, always the same for a kernel and class.
double drawn_seconds(const GemmKernel& kernel, int64_t rows) {
  const Digest digest = sha256(fmt::format("{} {}", name_of(kernel), rows));
  return expected_seconds(h200(), kernel, rows) * (0.67 + digest[0] / 384.0);
}

class TunerTest : public ::testing::Test {
 protected:
  TuneHooks hooks() {
    return {.prepare =
                [this](std::span<const GemmKernel> kernels) {
                  for (const GemmKernel& kernel : kernels) prepared_.insert(name_of(kernel));
                  return Status();
                },
            .time = [this](const GemmKernel& kernel, int64_t rows) -> Result<double> {
              EXPECT_TRUE(prepared_.contains(name_of(kernel)));
              now_ += cost_;
              auto result = seconds_(kernel, rows);
              if (result.has_value()) times_[{rows, name_of(kernel)}] = *result;
              ++calls_;
              return result;
            },
            .now_seconds = [this] { return now_; },
            .save =
                [this](const GemmTable& table) {
                  saved_ = table;
                  ++saves_;
                  return Status();
                },
            .progress = [this](const TuneProgress& progress) { last_ = progress; }};
  }
  static GemmTable empty() { return {.device = "h200", .gpu = "g", .compiler = "c"}; }

  double now_ = 1000, cost_ = 0.01;
  std::function<Result<double>(const GemmKernel&, int64_t)> seconds_ = drawn_seconds;
  std::set<std::string> prepared_;
  std::map<std::pair<int64_t, std::string>, double> times_;  // the last shape's, for shapes have other names
  GemmTable saved_;
  TuneProgress last_;
  int calls_ = 0, saves_ = 0;
};

TEST_F(TunerTest, ChoosesWhatWasFastestUpToTheNoise) {
  const std::vector<TuneTask> tasks = {{kNarrow, rows_classes(1, 512)}, {kMasked, rows_classes(1, 128)}};
  GemmTable table = empty();
  const TuneOptions options{.seconds = 1e6};
  const auto report = tune(h200(), tasks, options, hooks(), table);
  ASSERT_TRUE(report.has_value()) << report.error().message;
  EXPECT_EQ(report->tuned, tasks[0].rows.size() + tasks[1].rows.size());
  EXPECT_EQ(report->left + report->kept, 0U);
  EXPECT_EQ(report->timed, static_cast<size_t>(calls_));
  EXPECT_GT(report->worst_regret, report->mean_regret);
  EXPECT_GT(report->mean_regret, 1);
  EXPECT_EQ(saves_, 2);
  size_t kernels = 0;
  for (const TuneTask& task : tasks) {
    const GemmTable::Product* product = table.find(task.shape);
    ASSERT_NE(product, nullptr);
    for (const bool deterministic : {false, true}) {
      const auto& choices = deterministic ? product->deterministic : product->fastest;
      ASSERT_EQ(choices.size(), task.rows.size());
      std::set<std::string> distinct;
      for (size_t i = 0; i < choices.size(); ++i) {
        EXPECT_EQ(choices[i].rows, task.rows[i]);
        double best = 1e9;
        for (const GemmKernel& kernel : tuning_candidates(h200(), task.shape, task.rows[i], options))
          if (!deterministic || summing_order(kernel) == deterministic_order(task.shape))
            best = std::min(best, drawn_seconds(kernel, task.rows[i]));
        EXPECT_EQ(choices[i].seconds, drawn_seconds(choices[i].kernel, task.rows[i]));
        EXPECT_LE(choices[i].seconds, best * (1 + options.equal));
        distinct.insert(name_of(choices[i].kernel));
      }
      kernels += distinct.size();
    }
  }
  fmt::print("{} classes, {} times, {} kernels chosen\n", report->tuned, calls_, kernels);
  // What was made can be read by the chooser, and is what it says.
  const auto read = parse_gemm_table(to_json(table), h200());
  ASSERT_TRUE(read.has_value()) << read.error().message;
}

TEST_F(TunerTest, TimesOnlyWhatTheModelDoesNotRuleOut) {
  const TuneOptions options{.within = 1.3, .fewest = 5};
  size_t pruned = 0;
  for (const int64_t rows : {8, 64, 512, 4096}) {
    const std::vector<GemmKernel> all = all_candidates(h200(), kWide, rows),
                                  kept = tuning_candidates(h200(), kWide, rows, options);
    double best = 1e9, best_ordered = 1e9;
    size_t within = 0, ordered = 0;
    for (const GemmKernel& kernel : all) {
      const double seconds = expected_seconds(h200(), kernel, rows);
      best = std::min(best, seconds);
      if (summing_order(kernel) == deterministic_order(kWide)) best_ordered = std::min(best_ordered, seconds);
    }
    EXPECT_EQ(expected_seconds(h200(), kept.front(), rows), best);
    for (const GemmKernel& kernel : all) {
      const double seconds = expected_seconds(h200(), kernel, rows);
      const bool in_order = summing_order(kernel) == deterministic_order(kWide);
      const bool worthy = seconds <= 1.3 * best || (in_order && seconds <= 1.3 * best_ordered);
      const bool is_kept = std::ranges::find(kept, kernel) != kept.end();
      EXPECT_TRUE(is_kept || !worthy) << name_of(kernel);
      within += worthy ? 1 : 0;
      ordered += is_kept && in_order ? 1 : 0;
    }
    EXPECT_GE(ordered, 5U);
    EXPECT_LE(kept.size(), within + 2 * options.fewest);
    pruned += all.size() - kept.size();
  }
  EXPECT_GT(pruned, 20U);
}

TEST_F(TunerTest, EndsInTimeAndGivesEachProductItsPart) {
  const std::vector<TuneTask> tasks = {{kNarrow, rows_classes(1, 4096)}, {kWide, rows_classes(1, 4096)}};
  GemmTable table = empty();
  cost_ = 1;
  const auto report = tune(h200(), tasks, {.seconds = 400}, hooks(), table);
  ASSERT_TRUE(report.has_value());
  // The class that was begun in time is finished.
  EXPECT_LT(now_, 1000 + 400 + 60);
  EXPECT_GT(now_, 1000 + 390);
  EXPECT_EQ(report->tuned + report->left, tasks[0].rows.size() + tasks[1].rows.size());
  EXPECT_GT(report->left, 0U);
  for (const TuneTask& task : tasks) {
    const GemmTable::Product* product = table.find(task.shape);
    ASSERT_NE(product, nullptr);
    EXPECT_GT(product->fastest.size(), 3U);
    EXPECT_EQ(product->fastest.size(), product->deterministic.size());
  }
}

TEST_F(TunerTest, GoesOnWhereItStopped) {
  const std::vector<TuneTask> tasks = {{kNarrow, rows_classes(1, 1024)}, {kMasked, rows_classes(1, 256)}};
  const size_t total = tasks[0].rows.size() + tasks[1].rows.size();
  GemmTable table = empty();
  cost_ = 1;
  size_t tuned = 0, runs = 0;
  for (; tuned < total; ++runs) {
    ASSERT_LT(runs, 50U);
    const GemmTable before = table;
    const auto report = tune(h200(), tasks, {.seconds = 200}, hooks(), table);
    ASSERT_TRUE(report.has_value());
    EXPECT_EQ(report->kept, tuned);
    EXPECT_GT(report->tuned, 0U);
    tuned += report->tuned;
    EXPECT_EQ(report->kept + report->tuned + report->left, total);
    // What was there is there.
    for (const GemmTable::Product& product : before.products)
      for (const GemmTable::Choice& choice : product.fastest)
        EXPECT_EQ(*table.find(product.shape, choice.rows, false), choice.kernel);
  }
  EXPECT_GT(runs, 2U);
  const int calls = calls_;
  const auto report = tune(h200(), tasks, {.seconds = 200}, hooks(), table);
  EXPECT_EQ(report->kept, total);
  EXPECT_EQ(calls_, calls) << "nothing is timed twice";
}

TEST_F(TunerTest, NeverChoosesAWrongKernel) {
  const std::vector<TuneTask> tasks = {{kNarrow, rows_classes(1, 128)}};
  GemmTable table = empty();
  // Those that would win.
  seconds_ = [](const GemmKernel& kernel, int64_t rows) -> Result<double> {
    if (name_of(kernel).find("p8s") != std::string::npos) return corrupt("row 3 is wrong");
    return drawn_seconds(kernel, rows);
  };
  const auto report = tune(h200(), tasks, {.seconds = 1e6}, hooks(), table);
  ASSERT_TRUE(report.has_value());
  ASSERT_FALSE(report->wrong.empty());
  ASSERT_EQ(table.products.size(), 1U);
  EXPECT_THAT(report->wrong.front(), AllOf(HasSubstr("p8s"), HasSubstr("row 3 is wrong")));
  EXPECT_EQ(std::set<std::string>(report->wrong.begin(), report->wrong.end()).size(), report->wrong.size())
      << "a wrong kernel is not tried again";
  EXPECT_EQ(table.products[0].fastest.size(), tasks[0].rows.size());
  for (const GemmTable::Choice& choice : table.products[0].fastest)
    EXPECT_THAT(name_of(choice.kernel), ::testing::Not(HasSubstr("p8s")));
}

TEST_F(TunerTest, KeepsWhatWasTunedBeforeAnError) {
  const std::vector<TuneTask> tasks = {{kNarrow, {8, 16}}, {kWide, {8, 16}}};
  GemmTable table = empty();
  seconds_ = [](const GemmKernel& kernel, int64_t rows) -> Result<double> {
    if (kernel.shape == kWide && rows == 16) return internal("the GPU is gone");
    return drawn_seconds(kernel, rows);
  };
  const auto report = tune(h200(), tasks, {}, hooks(), table);
  ASSERT_TRUE(report.has_error());
  EXPECT_THAT(report.error().message, AllOf(HasSubstr("fp8_gemm"), HasSubstr("the GPU is gone")));
  EXPECT_EQ(saves_, 1);
  ASSERT_EQ(saved_.products.size(), 1U);
  EXPECT_EQ(saved_.products[0].shape, kNarrow);
}

// -- Ties

GemmKernel kernel_of(int block_n) {
  return {kWide, GemmConfig{.block_n = block_n}};
}
std::vector<int> widths_of(const std::vector<GemmTable::Choice>& choices) {
  std::vector<int> widths;
  for (const GemmTable::Choice& choice : choices) widths.push_back(std::get<GemmConfig>(choice.kernel.config).block_n);
  return widths;
}

TEST(ChooseFew, PrefersAKernelThatServesMoreClasses) {
  // 64 is a percent slower than the best one everywhere.
  const std::vector<TimedClass> classes = {{8, {{kernel_of(16), 1.00}, {kernel_of(64), 1.01}}},
                                           {16, {{kernel_of(32), 1.00}, {kernel_of(64), 1.01}}},
                                           {24, {{kernel_of(128), 1.00}, {kernel_of(64), 1.50}}}};
  EXPECT_THAT(widths_of(choose_few(classes, 0.02)), ElementsAre(64, 64, 128));
  EXPECT_THAT(widths_of(choose_few(classes, 0.005)), ElementsAre(16, 32, 128));
  EXPECT_EQ(choose_few(classes, 0.02)[1].seconds, 1.01);
}

TEST(ChooseFew, PrefersTheFasterOfThoseThatServeAsMany) {
  const std::vector<TimedClass> classes = {{8, {{kernel_of(16), 1.01}, {kernel_of(64), 1.00}}},
                                           {16, {{kernel_of(16), 1.01}, {kernel_of(64), 1.00}}}};
  EXPECT_THAT(widths_of(choose_few(classes, 0.02)), ElementsAre(64, 64));
}

TEST(ChooseFew, TakesTheFirstOfEqualOnes) {
  const std::vector<TimedClass> classes = {{8, {{kernel_of(96), 1}, {kernel_of(64), 1}}},
                                           {16, {{kernel_of(64), 1}, {kernel_of(96), 1}}}};
  EXPECT_THAT(widths_of(choose_few(classes, 0.02)), ElementsAre(96, 96));
}

}  // namespace
}  // namespace plait::cuda
