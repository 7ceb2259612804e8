// The products on a GPU, against sums in double precision.
//
// compute-sanitizer makes programs many times slower: --gtest_filter=*Sanitizer* is a small run for it, in buffers
// without guards.
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <mutex>
#include <random>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/round.h"
#include "kernels/cuda/gemm_chooser.h"
#include "tensor/dtype.h"
#include "tests/kernels/cuda/gemm_problem.h"
#include "tests/kernels/cuda/gpu_test.h"

namespace plait::cuda::testing {
namespace {

constexpr uint8_t kPoison = 0xa5;        // of every byte of the results: a number that no sum here comes near to
constexpr int64_t kComparedWork = 3e7;   // multiply-adds of the results that are compared in one problem
constexpr size_t kReportedMistakes = 5;  // of one problem

constexpr GemmFormat kFormats[] = {GemmFormat::kFp8, GemmFormat::kBf16};
constexpr GemmResult kResults[] = {GemmResult::kBf16, GemmResult::kF32};

// A product and what multiplies it.
struct Case {
  GemmKernel kernel;
  std::vector<int64_t> counts;
  int64_t room = 0;
};

// Collects what is wrong, from several threads.
class Mistakes {
 public:
  void add(std::string text) {
    const std::lock_guard lock(mutex_);
    if (++count_ <= kReportedMistakes) texts_.push_back(std::move(text));
  }
  void report() const {
    for (const std::string& text : texts_) ADD_FAILURE() << text;
    if (count_ > kReportedMistakes) ADD_FAILURE() << "and " << count_ - kReportedMistakes << " more";
  }

 private:
  std::mutex mutex_;
  std::vector<std::string> texts_;
  size_t count_ = 0;
};

class GemmTest : public GpuTest {
 protected:
  // Every case twice: results do not depend on timing.
  void check_all(const char* what, const std::vector<Case>& cases, size_t guard_bytes = kGuardBytes) {
    const auto begin = std::chrono::steady_clock::now();
    const auto seconds = [&] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    };
    std::vector<jit::KernelSource> sources;
    for (const Case& each : cases) sources.push_back(source_of(each.kernel));
    compile(sources);
    const double compiling = seconds();
    if (HasFailure()) return;
    int64_t compared = 0;
    for (const Case& each : cases) compared += check(each, guard_bytes);
    fmt::print("{} {}, {} results compared: {:.1f} s, and {:.1f} s for kernels\n", cases.size(), what, compared,
               seconds() - compiling, compiling);
  }

 private:
  // Results that were compared.
  int64_t check(const Case& c, size_t guard_bytes) {
    const std::string name = name_of(c.kernel);
    SCOPED_TRACE(fmt::format("{} with rows {}, room for {}", name, fmt::join(c.counts, ","), c.room));
    if (const auto* config = std::get_if<GemmConfig>(&c.kernel.config)) {
      const auto gemm = Gemm::load(device(), c.kernel.shape, *config, cubin_of(source_of(c.kernel)));
      return check(c, gemm, config->block_m, guard_bytes);
    }
    const auto& config = std::get<NarrowGemmConfig>(c.kernel.config);
    return check(c, NarrowGemm::load(device(), c.kernel.shape, config, cubin_of(source_of(c.kernel))), 1, guard_bytes);
  }
  template <typename Kernel>
  int64_t check(const Case& c, const Result<Kernel>& gemm, int64_t block_m, size_t guard_bytes) {
    if (gemm.has_error()) {
      ADD_FAILURE() << gemm.error().message;
      return 0;
    }
    const GemmData data({c.kernel.shape, c.counts, c.room}, block_m, ++seed_);
    std::vector<uint8_t> d, again;
    const auto run = [&]() -> Status {
      PLAIT_ASSIGN_OR_RETURN(GemmOnDevice on, GemmOnDevice::make(device(), stream(), data, guard_bytes));
      for (std::vector<uint8_t>* results : {&d, &again}) {
        results->resize(on.d.size_bytes());
        PLAIT_RETURN_IF_ERROR(on.d.fill(kPoison, stream()));
        PLAIT_RETURN_IF_ERROR(gemm.value().launch(on.operands, stream()));
        PLAIT_RETURN_IF_ERROR(on.d.read(results->data(), stream()));
        PLAIT_RETURN_IF_ERROR(stream().wait());
      }
      return on.check_guards(stream());
    };
    if (const Status status = run(); status.has_error()) {
      ADD_FAILURE() << status.error().message;
      return 0;
    }
    EXPECT_EQ(d, again) << "a second launch has other results";
    Mistakes mistakes;
    const bool f32 = c.kernel.shape.result == GemmResult::kF32;
    if (f32)
      check_written<uint32_t>(data, d, mistakes);
    else
      check_written<uint16_t>(data, d, mistakes);
    const int64_t compared = compare(data, d, mistakes);
    mistakes.report();
    return compared;
  }

  // All rows that exist, and no other.
  template <typename Word>
  static void check_written(const GemmData& data, const std::vector<uint8_t>& d, Mistakes& mistakes) {
    Word poison = 0;
    std::memset(&poison, kPoison, sizeof poison);
    const int64_t n = data.problem.shape.n;
    const Word* all = reinterpret_cast<const Word*>(d.data());
    const auto rows = [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const bool exists = data.group_of(row) >= 0;
        const Word* results = all + data.d_begin(row);
        const auto* wrong = std::find_if(results, results + n, [&](Word word) { return (word == poison) == exists; });
        if (wrong != results + n)
          mistakes.add(fmt::format("row {} column {} {}", row, wrong - results,
                                   exists ? "was not written" : "was written, and does not exist"));
      }
    };
    on_all_cores(data.rows, rows);
    // What lies between the groups of a row.
    if (const int64_t untouched = std::count(all, all + data.d_count, poison);
        data.problem.shape.rows == GemmRows::kBatched && untouched != data.d_count - data.rows * n)
      mistakes.add(fmt::format("{} numbers were not written, {} are not the product's", untouched,
                               data.d_count - data.rows * n));
  }

  // All results, or evenly some of them.
  static int64_t compare(const GemmData& data, const std::vector<uint8_t>& d, Mistakes& mistakes) {
    const GemmShape& shape = data.problem.shape;
    const int64_t all = data.rows * shape.n, affordable = std::max<int64_t>(kComparedWork / shape.k, 1);
    const int64_t stride = all <= affordable ? 1 : (all / affordable) | 1;
    std::atomic<int64_t> compared = 0;
    const auto some = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * stride; i < std::min(end * stride, all); i += stride) {
        const int64_t row = i / shape.n, n = i % shape.n;
        if (data.group_of(row) < 0) continue;
        const GemmData::Exact exact = data.exact(row, n);
        const double result = result_at(shape, d, data.d_begin(row) + n), bound = bound_of(shape, exact);
        ++compared;
        if (!(std::abs(result - exact.sum) <= bound))
          mistakes.add(fmt::format("row {} column {}: {} instead of {}, {} allowed", row, n, result, exact.sum, bound));
      }
    };
    on_all_cores(ceil_div(all, stride), some, 1024);
    return compared;
  }
  static double result_at(const GemmShape& shape, const std::vector<uint8_t>& d, int64_t i) {
    if (shape.result == GemmResult::kF32) return static_cast<double>(reinterpret_cast<const float*>(d.data())[i]);
    return static_cast<double>(static_cast<float>(reinterpret_cast<const BFloat16*>(d.data())[i]));
  }
  // Of rounding the result, and of sums in the tensor cores: FP8 of products that are cut off 13 bits below the
  // largest, BF16 with float32's bits, cut off instead of rounded.
  static double bound_of(const GemmShape& shape, const GemmData::Exact& exact) {
    const double rounding = shape.result == GemmResult::kF32 ? 0 : std::ldexp(std::abs(exact.sum), -8);
    return rounding + std::ldexp(exact.size, shape.format == GemmFormat::kFp8 ? -11 : -19);
  }

  uint32_t seed_ = 0;
};

// What chooser, tuning and tables may ask for.
const GemmConfig kConfigs[] = {
    {.block_m = 64, .block_n = 32, .stages = 8},
    {.block_m = 64, .block_n = 64, .stages = 8},
    {.block_m = 64, .block_n = 128, .stages = 6},
    {.block_m = 128, .block_n = 112, .stages = 5, .band = 4},
    {.block_m = 128, .block_n = 128, .stages = 5, .share = GemmShare::kRows},
    {.block_m = 128, .block_n = 160, .stages = 4, .share = GemmShare::kRows, .band = 1},
    {.block_m = 128, .block_n = 128, .stages = 5, .share = GemmShare::kWeights},
    {.block_m = 128, .block_n = 192, .stages = 4},
    {.block_m = 128, .block_n = 256, .stages = 4, .waves = 2},
};
const NarrowGemmConfig kNarrowConfigs[] = {{.tokens = 8, .split = 1, .stages = 8},
                                           {.tokens = 16, .split = 4, .stages = 6},
                                           {.tokens = 64, .split = 3, .stages = 4},
                                           {.tokens = 128, .split = 8, .stages = 3}};

// Those that the shape can have. Sums of BF16 products need no scaling, so they stay where the tensor cores have them:
// one wave.
template <typename Use>
void for_each_config(const GemmShape& shape, const Use& use) {
  for (GemmConfig config : kConfigs) {
    if (shape.format == GemmFormat::kBf16) config.waves = 1;
    if (!validate(shape, config).has_error()) use(config);
  }
}

// One after the other, so that both meet every configuration and every shape.
GemmResult result_in_turn(size_t& turn) {
  return kResults[turn++ % 2];
}

TEST_F(GemmTest, DenseIsRightForEveryShape) {
  std::vector<Case> cases;
  size_t turn = 0;
  for (const GemmFormat format : kFormats)
    for (const auto& [n, k] : {std::pair{8, 16}, {24, 128}, {576, 592}, {2112, 2048}, {4096, 576}})
      for_each_config({.format = format, .n = n, .k = k}, [&, n = n, k = k](const GemmConfig& config) {
        const GemmShape shape{.format = format, .n = n, .k = k, .result = result_in_turn(turn)};
        for (const int64_t m : {1, 7, 64, 65, 129, 300, 1000}) cases.push_back({{shape, config}, {m}});
      });
  check_all("dense products", cases);
}

TEST_F(GemmTest, NarrowIsRightForEveryShape) {
  std::vector<Case> cases;
  for (const GemmFormat format : kFormats)
    for (const GemmResult result : kResults)
      for (const NarrowGemmConfig& config : kNarrowConfigs)
        for (const auto& [n, k] : {std::pair{8, 1024}, {64, 2048}, {576, 1168}, {4096, 2048}}) {
          const GemmShape shape{.format = format, .n = n, .k = k, .result = result};
          for (const int64_t m : {1, 7, 8, 9, 64, 130}) cases.push_back({{shape, config}, {m}});
        }
  check_all("narrow products", cases);
}

TEST_F(GemmTest, GroupsAreRightAndNothingElseIsTouched) {
  const std::vector<int64_t> loads[] = {{0, 0, 0, 0},     {1, 0, 0, 0},     {0, 64, 128, 1},
                                        {129, 0, 300, 7}, {0, 0, 0, 320},   {320, 320, 320, 320},
                                        {320, 0, 0, 0},   {0, 320, 1, 319}, {33, 65, 127, 255}};
  std::vector<Case> cases;
  size_t turn = 0;
  for (const GemmRows rows : {GemmRows::kContiguous, GemmRows::kMasked})
    for (const GemmFormat format : kFormats)
      for (const auto& [n, k] : {std::pair{24, 144}, {576, 2048}, {2048, 512}})
        for_each_config({rows, format, n, k, 4}, [&, n = n, k = k](const GemmConfig& config) {
          const GemmShape shape{rows, format, n, k, 4, result_in_turn(turn)};
          for (const std::vector<int64_t>& counts : loads) cases.push_back({{shape, config}, counts, 320});
        });
  check_all("grouped products", cases);
}

// -- Row counts up to 8192, with few columns

constexpr int64_t kMostRows = 8192;

std::vector<int64_t> row_counts(std::mt19937& random) {
  std::vector<int64_t> counts = {0,   1,   2,   7,   8,    63,   64,   65,   127,  128,
                                 129, 255, 256, 257, 1000, 4095, 4096, 4097, 8191, kMostRows};
  for (int i = 0; i < 5; ++i) counts.push_back(std::uniform_int_distribution<int64_t>(1, kMostRows)(random));
  return counts;
}

// That many rows in a group of three: alone, up to the room's end; and beside others in a room of any size.
std::vector<Case> grouped_cases(const GemmKernel& kernel, int64_t rows, std::mt19937& random) {
  const auto any = [&](int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random); };
  const int64_t other = any(0, rows);
  return {{kernel, {0, rows, 0}, std::max<int64_t>(rows, 1)}, {kernel, {rows, 0, other}, rows + any(1, 200)}};
}

TEST_F(GemmTest, EveryRowCountIsRight) {
  std::mt19937 random(20);
  const std::vector<int64_t> counts = row_counts(random);
  std::vector<Case> cases;
  for (const GemmRows rows : {GemmRows::kDense, GemmRows::kContiguous, GemmRows::kMasked})
    for (const GemmFormat format : kFormats) {
      GemmShape shape{.rows = rows, .format = format, .n = 136, .k = 208, .groups = rows == GemmRows::kDense ? 1 : 3};
      size_t turn = 0;
      for_each_config(shape, [&](const GemmConfig& config) {
        shape.result = result_in_turn(turn);
        for (const int64_t count : counts) {
          if (rows == GemmRows::kDense)
            cases.push_back({{shape, config}, {count}});
          else
            for (Case& each : grouped_cases({shape, config}, count, random)) cases.push_back(std::move(each));
        }
      });
      if (rows != GemmRows::kDense) continue;
      for (const NarrowGemmConfig& config :
           {NarrowGemmConfig{.tokens = 32, .split = 2, .stages = 4}, {.tokens = 64, .split = 1, .stages = 4}}) {
        shape.result = result_in_turn(turn);
        for (const int64_t count : counts) cases.push_back({{shape, config}, {count}});
      }
    }
  check_all(fmt::format("products of up to {} rows", kMostRows).c_str(), cases);
}

TEST_F(GemmTest, ManyGroupsAreRight) {
  std::mt19937 random(21);
  std::vector<Case> cases;
  for (const GemmRows rows : {GemmRows::kContiguous, GemmRows::kMasked})
    for (const GemmFormat format : kFormats)
      for (const int groups : {1, 32, 257}) {
        const GemmShape shape{.rows = rows, .format = format, .n = 136, .k = 272, .groups = groups};
        for (const GemmConfig& config : {GemmConfig{.block_m = 128, .block_n = 128, .stages = 5},
                                         GemmConfig{.block_m = 64, .block_n = 64, .stages = 6}})
          for (int i = 0; i < 6; ++i) {
            const int64_t room = std::uniform_int_distribution<int64_t>(1, 8192 / groups)(random);
            Case each{{shape, config}, {}, room};
            for (int group = 0; group < groups; ++group)
              each.counts.push_back(random() % 3 == 0 ? 0 : std::uniform_int_distribution<int64_t>(0, room)(random));
            if (i == 0) std::ranges::fill(each.counts, 0);
            if (i == 1) std::ranges::fill(each.counts, room);
            cases.push_back(std::move(each));
          }
      }
  check_all("products of many groups", cases);
}

// Heads are columns of the same rows.
TEST_F(GemmTest, BatchedIsRightAndNothingBetweenIsTouched) {
  std::mt19937 random(22);
  std::vector<Case> cases;
  size_t turn = 0;
  const auto add = [&](int64_t n, int64_t k, int groups, const std::vector<int64_t>& counts) {
    for_each_config({GemmRows::kBatched, GemmFormat::kBf16, n, k, groups}, [&](const GemmConfig& config) {
      const GemmShape shape{GemmRows::kBatched, GemmFormat::kBf16, n, k, groups, result_in_turn(turn)};
      for (const int64_t count : counts)
        for (const int64_t between : {0, 64}) cases.push_back({{shape, config}, {count}, between});
    });
  };
  add(136, 192, 3, row_counts(random));
  // The two products of absorbed attention, with 16 heads.
  add(512, 128, 16, {1, 8, 65, 256, 1000});
  add(128, 512, 16, {1, 8, 65, 256, 1000});
  check_all("batched products", cases);
}

// -- What models ask for

TEST_F(GemmTest, LogitsAreRightWithTheKernelsThatAreChosen) {
  const DeviceModel model = *find_device("h200");
  std::vector<Case> cases;
  const auto add = [&](int64_t n, int64_t k, std::initializer_list<int64_t> rows) {
    const GemmShape shape{.format = GemmFormat::kBf16, .n = n, .k = k, .result = GemmResult::kF32};
    for (const int64_t m : rows) cases.push_back({choose_gemm(model, shape, m), {m}});
  };
  for (const auto& [n, k] : {std::pair{256, 7168}, {384, 7168}, {160, 5120}, {64, 2048}})
    add(n, k, {1, 8, 9, 32, 33, 64, 100, 128, 129, 256, 300, 512, 513, 1000, 2048, 4096});
  add(16160, 7168, {1, 128});
  add(2024, 7168, {1, 16, 64, 384});
  check_all("products into logits", cases);
}

// -- For compute-sanitizer

class GemmSanitizerTest : public GemmTest {};

TEST_F(GemmSanitizerTest, EveryKindOfKernelOnce) {
  std::vector<Case> cases;
  size_t turn = 0;
  for (const GemmRows rows : {GemmRows::kDense, GemmRows::kContiguous, GemmRows::kMasked})
    for (const GemmFormat format : kFormats)
      for_each_config({rows, format, 152, 400, rows == GemmRows::kDense ? 1 : 3}, [&](const GemmConfig& config) {
        GemmShape shape{rows, format, 152, 400, rows == GemmRows::kDense ? 1 : 3, result_in_turn(turn)};
        if (rows == GemmRows::kDense) {
          cases.push_back({{shape, config}, {1}});
          cases.push_back({{shape, config}, {130}});
        } else {
          cases.push_back({{shape, config}, {0, 130, 1}, 130});
        }
      });
  for_each_config({GemmRows::kBatched, GemmFormat::kBf16, 152, 320, 3}, [&](const GemmConfig& config) {
    cases.push_back({{{GemmRows::kBatched, GemmFormat::kBf16, 152, 320, 3, result_in_turn(turn)}, config}, {130}, 8});
  });
  for (const GemmFormat format : kFormats)
    for (const NarrowGemmConfig& config : kNarrowConfigs) {
      const GemmShape shape{.format = format, .n = 152, .k = 1040, .result = result_in_turn(turn)};
      cases.push_back({{shape, config}, {1}});
      cases.push_back({{shape, config}, {70}});
    }
  check_all("small products", cases, kNoGuard);
}

}  // namespace
}  // namespace plait::cuda::testing
