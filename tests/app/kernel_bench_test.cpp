// What `plait bench --kernels` measures, and that its checks find what is wrong: no GPU is needed.
#include <cmath>
#include <cstring>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bench/kernel_cases.h"
#include "bench/kernel_problem.h"
#include "kernels/cuda/gemm_chooser.h"
#include "tensor/dtype.h"

namespace plait {
namespace {

using cuda::GemmFormat;
using cuda::GemmResult;
using cuda::GemmRows;
using cuda::GemmShape;
using ::testing::HasSubstr;

std::vector<RankKernels> v3_ranks() {
  ManifestQuestion question{.parallel = deepseek_v3_layout(), .device = *cuda::find_device("h200")};
  auto ranks = kernels_of_ranks(*deepseek_v3_config(), question);
  EXPECT_TRUE(ranks.has_value()) << ranks.error().message;
  return std::move(*ranks);
}

TEST(KernelCases, AreEachOperationOfTheModelOnce) {
  const std::vector<RankKernels> ranks = v3_ranks();
  const std::vector<KernelCase> cases = model_cases(ranks, {});
  std::set<std::string> labels;
  for (const KernelCase& each : cases) {
    labels.insert(each.label);
    EXPECT_FALSE(each.rows.empty()) << each.label;
    EXPECT_TRUE(std::ranges::is_sorted(each.rows));
    for (const int64_t rows : each.rows) {
      bool can_come = false;
      for (const RankKernels& rank : ranks)
        for (const RankCall& call : rank.calls)
          for (const ReachableRows& reachable : call.rows)
            can_come = can_come || (call.operation == each.operation && rows >= reachable.first &&
                                    rows <= reachable.last && (rows - reachable.first) % reachable.multiple == 0);
      EXPECT_TRUE(can_come) << each.label << " with " << rows << " rows";
    }
  }
  for (const char* label : {"attention.q_b", "attention.o", "experts.down", "experts.down input", "lm_head"})
    EXPECT_TRUE(std::ranges::any_of(labels, [&](const std::string& text) { return text.find(label) != text.npos; }))
        << label;
  // Asked for what cannot come, the most that can is measured, of each call.
  std::set<int64_t> most;
  for (const RankKernels& rank : ranks)
    for (const RankCall& call : rank.calls) most.insert(std::ranges::max(call.rows, {}, &ReachableRows::last).last);
  for (const KernelCase& each : model_cases(ranks, std::vector<int64_t>{1 << 30})) {
    EXPECT_FALSE(each.rows.empty());
    for (const int64_t rows : each.rows) EXPECT_TRUE(most.contains(rows)) << each.label << ": " << rows;
  }
}

TEST(KernelCases, HaveDeepGemmsSizes) {
  size_t dense = 0, contiguous = 0, masked = 0;
  for (const KernelCase& each : deepgemm_cases(GemmFormat::kFp8, {})) {
    const GemmRows form = std::get<GemmShape>(each.operation).rows;
    (form == GemmRows::kDense ? dense : form == GemmRows::kMasked ? masked : contiguous) += each.rows.size();
  }
  EXPECT_EQ(dense, 21U);
  EXPECT_EQ(contiguous, 8U);
  EXPECT_EQ(masked, 16U);
  size_t asked = 0;
  for (const KernelCase& each : deepgemm_cases(GemmFormat::kBf16, std::vector<int64_t>{20, 300}))
    asked += each.rows.size();
  EXPECT_EQ(asked, 7U * 2 + 8);
}

TEST(TuneTasks, HaveEveryClassOfRowsThatCanCome) {
  const std::vector<RankKernels> ranks = v3_ranks();
  const std::vector<cuda::TuneTask> tasks = tune_tasks(ranks, 1000);
  for (const RankKernels& rank : ranks)
    for (const RankCall& call : rank.calls) {
      const auto* shape = std::get_if<GemmShape>(&call.operation);
      if (shape == nullptr) continue;
      const auto task = std::ranges::find(tasks, *shape, &cuda::TuneTask::shape);
      for (const ReachableRows& reachable : call.rows)
        for (int64_t rows = reachable.first; rows <= std::min<int64_t>(reachable.last, 1000);
             rows += reachable.multiple) {
          ASSERT_NE(task, tasks.end());
          EXPECT_TRUE(std::ranges::binary_search(task->rows, cuda::rows_class(rows))) << rows;
        }
    }
}

TEST(RowLayout, HasTheRowsThatWereAskedFor) {
  for (const int64_t rows : {1, 100, 128, 129, 5000}) {
    const RowLayout dense = lay_out(GemmRows::kDense, 1, rows, 0, 1);
    EXPECT_EQ(dense.existing, rows);
    for (const int groups : {1, 7, 32}) {
      const RowLayout contiguous = lay_out(GemmRows::kContiguous, groups, rows, 0, 2);
      EXPECT_EQ(contiguous.m, (rows + 127) / 128 * 128);
      EXPECT_EQ(std::ssize(contiguous.counts), contiguous.m / 128);
      EXPECT_TRUE(std::ranges::is_sorted(contiguous.block_groups));
      int64_t sum = 0;
      for (const int32_t count : contiguous.counts) sum += count;
      EXPECT_EQ(sum, contiguous.existing);
      EXPECT_EQ(std::ssize(contiguous.first), contiguous.matrices);
      const RowLayout masked = lay_out(GemmRows::kMasked, groups, rows, usual_room(rows), 3);
      EXPECT_EQ(masked.rows, groups * usual_room(rows));
      EXPECT_NEAR(static_cast<double>(masked.existing), static_cast<double>(groups * rows),
                  0.31 * groups * rows + groups);
      for (const int32_t count : masked.counts) EXPECT_LE(count, masked.m);
    }
  }
}

// A product of the patterns on the host, for whole rows.
std::vector<uint8_t> host_row(const GemmShape& shape, const RowLayout& layout, const GemmPatterns& patterns,
                              const ExpectedRow& row) {
  const auto each = static_cast<size_t>(element_bytes(shape.result));
  std::vector<uint8_t> bytes(static_cast<size_t>(shape.n) * each, kUnwritten);
  if (!row.exists) return bytes;
  int group = 0;
  for (size_t run = 0; run < layout.first.size(); ++run)
    if (layout.first[run] <= row.row && row.row <= layout.last[run]) group = layout.group[run];
  const int64_t blocks = (shape.k + 127) / 128, scale_rows = (layout.m + 3) / 4 * 4,
                room = shape.rows == GemmRows::kMasked ? group : 0;
  for (int64_t n = 0; n < shape.n; ++n) {
    float sum = 0;
    for (int64_t k = 0; k < shape.k; ++k) {
      double product = patterns.a.at(row.row * shape.k + k) * patterns.b.at((group * shape.n + n) * shape.k + k);
      if (shape.format == GemmFormat::kFp8)
        product *= patterns.a_scales.at((room * blocks + k / 128) * scale_rows + row.row - room * layout.m) *
                   patterns.b_scales.at((group * ((shape.n + 127) / 128) + n / 128) * blocks + k / 128);
      sum += static_cast<float>(product);
    }
    const BFloat16 rounded(sum);
    std::memcpy(bytes.data() + static_cast<size_t>(n) * each, each == 4 ? static_cast<const void*>(&sum) : &rounded,
                each);
  }
  return bytes;
}

// Megabytes of random numbers: drawn once.
const GemmPatterns& patterns_of(GemmFormat format) {
  static const GemmPatterns fp8(GemmFormat::kFp8, 5), bf16(GemmFormat::kBf16, 5);
  return format == GemmFormat::kFp8 ? fp8 : bf16;
}

TEST(ExpectedRows, TakeRightResultsAndNoOthers) {
  const GemmShape shapes[] = {{.n = 136, .k = 272},
                              {.format = GemmFormat::kBf16, .n = 136, .k = 272, .result = GemmResult::kF32},
                              {.rows = GemmRows::kContiguous, .n = 136, .k = 272, .groups = 3},
                              {.rows = GemmRows::kMasked, .format = GemmFormat::kBf16, .n = 136, .k = 272, .groups = 3},
                              {.rows = GemmRows::kMasked, .n = 136, .k = 272, .groups = 3}};
  for (const GemmShape& shape : shapes) {
    SCOPED_TRACE(describe(shape));
    const GemmPatterns& patterns = patterns_of(shape.format);
    const RowLayout layout = lay_out(shape.rows, shape.groups, 300, 512, 6);
    const std::vector<ExpectedRow> rows = expected_rows(shape, layout, patterns, 7);
    EXPECT_EQ(std::ranges::any_of(rows, [](const ExpectedRow& row) { return !row.exists; }),
              shape.rows != GemmRows::kDense);
    for (const ExpectedRow& row : rows) {
      const std::vector<uint8_t> right = host_row(shape, layout, patterns, row);
      const Status status = check_row(shape.result, row, right);
      EXPECT_FALSE(status.has_error()) << status.error().message;
      std::vector<uint8_t> wrong = right;
      if (!row.exists) {
        wrong[wrong.size() - 1] = 0;
        EXPECT_THAT(check_row(shape.result, row, wrong).error().message, HasSubstr("and does not exist"));
        continue;
      }
      const auto each = static_cast<size_t>(element_bytes(shape.result));
      const size_t at = static_cast<size_t>(row.values[row.values.size() / 2].column) * each;
      wrong[at + each - 1] ^= 0x01;  // twice or half as much
      EXPECT_THAT(check_row(shape.result, row, wrong).error().message, HasSubstr("instead of"));
      std::memset(wrong.data() + at, kUnwritten, each);
      EXPECT_THAT(check_row(shape.result, row, wrong).error().message, HasSubstr("was not written"));
    }
  }
}

TEST(QuantizedRows, AreTakenIfTheyAreRight) {
  for (const cuda::QuantizeShape& shape : {cuda::QuantizeShape{.k = 264}, cuda::QuantizeShape{.k = 264, .gated = true},
                                           cuda::QuantizeShape{.k = 264, .power_of_two = true}}) {
    const Pattern& x = patterns_of(GemmFormat::kBf16).a;
    std::vector<uint8_t> q(264);
    std::vector<float> scales(3);
    const int64_t row = 11;
    for (int64_t block = 0; block < 3; ++block) {
      std::vector<double> values;
      double largest = 1e-4;
      for (int64_t i = block * 128; i < std::min<int64_t>(264, block * 128 + 128); ++i) {
        double value = x.at(row * 264 + i);
        if (shape.gated) {
          const double gate = x.at(row * 528 + i);
          value = gate / (1 + std::exp(-gate)) * x.at(row * 528 + 264 + i);
        }
        values.push_back(value);
        largest = std::max(largest, std::abs(value));
      }
      double scale = largest / 448;
      if (shape.power_of_two) scale = std::exp2(std::ceil(std::log2(scale)));
      scales[static_cast<size_t>(block)] = static_cast<float>(scale);
      for (size_t i = 0; i < values.size(); ++i)
        q[static_cast<size_t>(block) * 128 + i] = float_to_e4m3(static_cast<float>(values[i] / scale));
    }
    const Status status = check_quantized_row(shape, x, row, q, scales);
    EXPECT_FALSE(status.has_error()) << status.error().message;
    std::vector<uint8_t> wrong = q;
    wrong[200] ^= 0x80;
    EXPECT_THAT(check_quantized_row(shape, x, row, wrong, scales).error().message, HasSubstr("row 11 column 200 is"));
    scales[1] *= 1.01F;
    EXPECT_THAT(check_quantized_row(shape, x, row, q, scales).error().message,
                HasSubstr("the scale of row 11 block 1"));
  }
}

}  // namespace
}  // namespace plait
