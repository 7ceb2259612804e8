#include "kernels/linear.h"

#include <random>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/cpu/linear_kernels.h"
#include "tests/support/effort.h"

namespace plait::kernels {
namespace {

using Random = std::mt19937_64;
using testing::HasSubstr;

int64_t uniform(Random& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}

// A weight in a checkpoint's memory.
struct StoredWeight {
  std::vector<std::byte> data;
  std::vector<float> scales;
  WeightSource source;
  std::vector<float> decoded;  // [rows, cols]
};

void store(std::vector<std::byte>& data, DType dtype, size_t index, float value) {
  switch (dtype) {
    case DType::kF32:
      std::memcpy(data.data() + index * 4, &value, 4);
      break;
    case DType::kBF16: {
      const BFloat16 bf16(value);
      std::memcpy(data.data() + index * 2, &bf16, 2);
      break;
    }
    case DType::kF16: {
      const uint16_t half = float_to_half(value);
      std::memcpy(data.data() + index * 2, &half, 2);
      break;
    }
    default:
      data[index] = static_cast<std::byte>(float_to_e4m3(value * 100));  // spread over the range of e4m3
  }
}

StoredWeight random_weight(Random& random, DType dtype, int64_t rows, int64_t cols) {
  std::normal_distribution<float> normal;
  StoredWeight weight;
  weight.data.resize(static_cast<size_t>(rows * cols * size_of(dtype)));
  for (size_t i = 0; i < static_cast<size_t>(rows * cols); ++i) store(weight.data, dtype, i, normal(random));
  weight.source = {dtype, rows, cols, weight.data.data(), nullptr, 0};
  if (dtype == DType::kF8E4M3) {
    weight.scales.resize(static_cast<size_t>((rows + 127) / 128 * ((cols + 127) / 128)));
    for (float& scale : weight.scales) scale = 0.01f * std::exp(normal(random));
    weight.source.scales = reinterpret_cast<const std::byte*>(weight.scales.data());
    weight.source.block = 128;
  }
  weight.decoded.resize(static_cast<size_t>(rows * cols));
  for (int64_t i = 0; i < rows; ++i) weight.source.decode_row(i, weight.decoded.data() + i * cols);
  return weight;
}

DType natural_dtype(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return DType::kF32;
    case WeightFormat::kBF16:
      return DType::kBF16;
    case WeightFormat::kF8Block:
      return DType::kF8E4M3;
  }
  return DType::kF32;
}

constexpr WeightFormat kFormats[] = {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kF8Block};
constexpr Activation kActivations[] = {Activation::kFloat32, Activation::kBFloat16};

PackedMatrix pack(Implementation implementation, WeightFormat format, const WeightSource& source) {
  PackedMatrix matrix(implementation, format, source.rows, source.cols);
  EXPECT_TRUE(matrix.pack_rows(0, source).has_value());
  return matrix;
}

std::vector<float> random_rows(Random& random, int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

struct Machine {
  explicit Machine(int threads = 2) : pool(threads) {}
  Context context(Implementation implementation, Activation activation) {
    return {&pool, &workspace, implementation, activation};
  }
  ThreadPool pool;
  Workspace workspace;
};

// What an element must be, and how far float32 sums of its terms may be from it.
struct Expected {
  double value = 0;
  double tolerance = 0;
};

// x: [K], w: [K] as float32
Expected expected(const float* x, const float* w, int64_t count, Activation activation) {
  double sum = 0, magnitude = 0;
  for (int64_t k = 0; k < count; ++k) {
    const float rounded = activation == Activation::kBFloat16 ? static_cast<float>(BFloat16(x[k])) : x[k];
    const double term = static_cast<double>(rounded) * static_cast<double>(w[k]);
    sum += term;
    magnitude += std::fabs(term);
  }
  // Rounding errors of a float32 sum add up like a random walk; 2^-24 each, relative to at most `magnitude`.
  return {sum, magnitude * 0x1p-24 * (4 + 2 * std::sqrt(static_cast<double>(count)))};
}

void expect_product(const float* x, const StoredWeight& w, Activation activation, const float* y) {
  const int64_t in = w.source.cols;
  for (int64_t j = 0; j < w.source.rows; ++j) {
    const Expected want = expected(x, w.decoded.data() + j * in, in, activation);
    ASSERT_NEAR(y[j], want.value, want.tolerance) << "output " << j << " of " << w.source.rows << ", inputs " << in;
  }
}

// The reference, and the fast implementation with each instruction set of this machine.
struct Variant {
  Implementation implementation = Implementation::kReference;
  std::string_view target = {};
};
std::vector<Variant> variants() {
  std::vector<Variant> all{{}};
  for (const std::string_view target : linear_targets()) all.push_back({Implementation::kFast, target});
  return all;
}

class EveryImplementation : public testing::TestWithParam<Variant> {
 protected:
  void SetUp() override { ASSERT_TRUE(select_linear_target(GetParam().target)); }
  void TearDown() override { select_linear_target({}); }
  static Implementation implementation() { return GetParam().implementation; }
};
INSTANTIATE_TEST_SUITE_P(Linear, EveryImplementation, testing::ValuesIn(variants()), [](const auto& info) {
  return info.param.target.empty() ? "reference" : fmt::format("fast_{}", info.param.target);
});

constexpr float kPoison = -12345.0f;

TEST_P(EveryImplementation, ProductsOfRandomShapes) {
  Random random(1);
  Machine machine;
  int cases = 0;
  for (const WeightFormat format : kFormats)
    for (const Activation activation : kActivations)
      for (int round = 0; round < repetitions(24); ++round, ++cases) {
        const int64_t in = round < 4 ? uniform(random, 1, 5) : uniform(random, 1, 400);
        const int64_t out = uniform(random, 1, 150), rows = uniform(random, 0, 70);
        const StoredWeight stored = random_weight(random, natural_dtype(format), out, in);
        const PackedMatrix weight = pack(implementation(), format, stored.source);
        const int64_t x_stride = in + uniform(random, 0, 3), y_stride = out + uniform(random, 0, 3);
        const std::vector<float> x = random_rows(random, rows * x_stride);
        std::vector<float> y(static_cast<size_t>(rows * y_stride), kPoison);
        linear(machine.context(implementation(), activation), {x.data(), rows, in, x_stride}, weight,
               {y.data(), rows, out, y_stride});
        for (int64_t i = 0; i < rows; ++i) {
          expect_product(x.data() + i * x_stride, stored, activation, y.data() + i * y_stride);
          for (int64_t j = out; j < y_stride; ++j) ASSERT_EQ(y[static_cast<size_t>(i * y_stride + j)], kPoison);
        }
      }
  printf("%d products of random shapes\n", cases);
}

TEST_P(EveryImplementation, GroupsWriteTheirRowsOnly) {
  Random random(2);
  Machine machine;
  int cases = 0;
  for (const WeightFormat format : kFormats)
    for (const Activation activation : kActivations)
      for (int round = 0; round < repetitions(6); ++round, ++cases) {
        const int64_t in = uniform(random, 1, 300), out = uniform(random, 1, 100), experts = uniform(random, 1, 9);
        std::vector<StoredWeight> stored;
        std::vector<PackedMatrix> weights;
        std::vector<RowGroup> groups;
        int64_t rows = 0;
        for (int64_t e = 0; e < experts; ++e) {
          stored.push_back(random_weight(random, natural_dtype(format), out, in));
          weights.push_back(pack(implementation(), format, stored.back().source));
        }
        for (int64_t e = 0; e < experts; ++e) {
          rows += uniform(random, 0, 2);  // rows that no group names
          const int64_t count = uniform(random, 0, 3) == 0 ? 0 : uniform(random, 1, 20);
          groups.push_back({&weights[static_cast<size_t>(e)], rows, count});
          rows += count;
        }
        rows += 1;
        std::vector<float> x = random_rows(random, rows * in);
        std::vector<float> y(static_cast<size_t>(rows * out), kPoison);
        grouped_linear(machine.context(implementation(), activation), {x.data(), rows, in}, groups,
                       {y.data(), rows, out});
        std::vector<bool> named(static_cast<size_t>(rows));
        for (size_t g = 0; g < groups.size(); ++g)
          for (int64_t i = groups[g].row_begin; i < groups[g].row_begin + groups[g].row_count; ++i) {
            named[static_cast<size_t>(i)] = true;
            expect_product(x.data() + i * in, stored[g], activation, y.data() + i * out);
          }
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < out && !named[static_cast<size_t>(i)]; ++j)
            ASSERT_EQ(y[static_cast<size_t>(i * out + j)], kPoison);
      }
  printf("%d grouped products\n", cases);
}

TEST_P(EveryImplementation, NoGroupsAreFine) {
  Machine machine;
  const Context context = machine.context(implementation(), Activation::kFloat32);
  grouped_linear(context, {nullptr, 0, 8}, {}, {nullptr, 0, 8});
  PackedMatrix weight(implementation(), WeightFormat::kF32, 8, 8);
  const RowGroup empty{&weight, 0, 0};
  grouped_linear(context, {nullptr, 0, 8}, {&empty, 1}, {nullptr, 0, 8});
}

TEST_P(EveryImplementation, HeadsUseTheirOwnMatrix) {
  Random random(3);
  Machine machine;
  for (const WeightFormat format : kFormats)
    for (const Activation activation : kActivations) {
      const int64_t heads = 5, tokens = uniform(random, 1, 18), in = uniform(random, 3, 140),
                    out = uniform(random, 3, 70);
      std::vector<StoredWeight> stored;
      std::vector<PackedMatrix> weights;
      for (int64_t h = 0; h < heads; ++h) {
        stored.push_back(random_weight(random, natural_dtype(format), out, in));
        weights.push_back(pack(implementation(), format, stored.back().source));
      }
      // Token-major x, head-major y: the strides are the caller's business.
      std::vector<float> x_data = random_rows(random, tokens * heads * in);
      std::vector<float> y_data(static_cast<size_t>(tokens * heads * out), kPoison);
      const HeadRows x{x_data.data(), tokens, heads, in, heads * in, in};
      const HeadRows y{y_data.data(), tokens, heads, out, out, tokens * out};
      head_linear(machine.context(implementation(), activation), x, weights, y);
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t h = 0; h < heads; ++h)
          expect_product(x.at(t, h), stored[static_cast<size_t>(h)], activation, y.at(t, h));
    }
}

TEST_P(EveryImplementation, EveryE4M3ValueIsExact) {
  Machine machine;
  // One byte value per output, in column `position` alone, so that every place of the packed layout is seen.
  const int64_t out = 256, in = 260;
  int cases = 0;
  for (int64_t position = 0; position < in; position += 7) {
    std::vector<uint8_t> bytes(static_cast<size_t>(out * in), 0);
    for (int64_t j = 0; j < out; ++j)
      bytes[static_cast<size_t>(j * in + position)] = (j & 0x7f) == 0x7f ? 0 : static_cast<uint8_t>(j);
    std::vector<float> scales(2 * 3, 1.0f);
    const WeightSource source{DType::kF8E4M3,
                              out,
                              in,
                              reinterpret_cast<const std::byte*>(bytes.data()),
                              reinterpret_cast<const std::byte*>(scales.data()),
                              128};
    const PackedMatrix weight = pack(implementation(), WeightFormat::kF8Block, source);
    const std::vector<float> ones(static_cast<size_t>(in), 1.0f);
    for (const Activation activation : kActivations)
      for (const int64_t rows : {1, 17}) {
        std::vector<float> x, y(static_cast<size_t>(rows * out));
        for (int64_t i = 0; i < rows; ++i) x.insert(x.end(), ones.begin(), ones.end());
        linear(machine.context(implementation(), activation), {x.data(), rows, in}, weight, {y.data(), rows, out});
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < out; ++j, ++cases)
            ASSERT_EQ(y[static_cast<size_t>(i * out + j)], source.at(j, position)) << "byte " << j;
      }
    for (int64_t j = 0; j < out; ++j) ASSERT_EQ(weight.at(j, position), source.at(j, position));
  }
  printf("%d e4m3 elements\n", cases);
}

float stored_value(WeightFormat format, float value) {
  return format == WeightFormat::kBF16 ? static_cast<float>(BFloat16(value)) : value;
}

TEST_P(EveryImplementation, PartsOfAnySourceTypePackAnywhere) {
  Random random(4);
  constexpr DType kSources[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3};
  int cases = 0;
  for (const WeightFormat format : kFormats)
    for (int round = 0; round < repetitions(20); ++round, ++cases) {
      const int64_t in = uniform(random, 1, 300);
      std::vector<StoredWeight> parts;
      int64_t out = 0;
      for (int64_t part = uniform(random, 1, 4); part > 0; --part) {
        const DType dtype =
            format == WeightFormat::kF8Block ? DType::kF8E4M3 : kSources[uniform(random, 0, std::size(kSources) - 1)];
        parts.push_back(random_weight(random, dtype, uniform(random, 1, 150), in));
        out += parts.back().source.rows;
      }
      PackedMatrix matrix(implementation(), format, out, in);
      Machine machine(4);
      std::vector<int64_t> first_rows;
      for (int64_t row = 0; const StoredWeight& part : parts) {
        first_rows.push_back(row);
        row += part.source.rows;
      }
      machine.pool.parallel_for(static_cast<int64_t>(parts.size()), 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t p = begin; p < end; ++p)
          EXPECT_TRUE(
              matrix.pack_rows(first_rows[static_cast<size_t>(p)], parts[static_cast<size_t>(p)].source).has_value());
      });
      for (size_t p = 0; p < parts.size(); ++p)
        for (int64_t i = 0; i < parts[p].source.rows; ++i)
          for (int64_t k = 0; k < in; k += 1 + in / 40)
            ASSERT_EQ(matrix.at(first_rows[p] + i, k), stored_value(format, parts[p].source.at(i, k)));
    }
  printf("%d matrices packed in parts\n", cases);
}

TEST_P(EveryImplementation, PackRefusesWhatDoesNotFit) {
  Random random(5);
  PackedMatrix matrix(implementation(), WeightFormat::kF8Block, 32, 64);
  const auto message = [&](int64_t first_row, const WeightSource& source) {
    const Status status = matrix.pack_rows(first_row, source);
    return status.has_error() ? status.error().message : "accepted";
  };
  const StoredWeight good = random_weight(random, DType::kF8E4M3, 32, 64);
  const StoredWeight wide = random_weight(random, DType::kF8E4M3, 32, 65);
  const StoredWeight bf16 = random_weight(random, DType::kBF16, 32, 64);
  EXPECT_THAT(message(0, good.source), HasSubstr("accepted"));
  EXPECT_THAT(message(1, good.source), HasSubstr("rows 1 to 33 are outside"));
  EXPECT_THAT(message(-1, good.source), HasSubstr("outside"));
  EXPECT_THAT(message(0, wide.source), HasSubstr("[32, 65]"));
  EXPECT_THAT(message(0, bf16.source), HasSubstr("not BF16"));
  WeightSource changed = good.source;
  changed.scales = nullptr;
  EXPECT_THAT(message(0, changed), HasSubstr("without scales"));
  changed = good.source;
  changed.block = 64;
  EXPECT_THAT(message(0, changed), HasSubstr("blocks of 64"));
  changed = bf16.source;
  changed.dtype = DType::kI32;
  EXPECT_THAT(message(0, changed), HasSubstr("I32"));
}

// context.h: a result row depends on that row's inputs alone. Bits, not tolerances.
TEST_P(EveryImplementation, RowsDoNotDependOnTheirCompanyOrOnThreads) {
  Random random(6);
  Machine machines[] = {Machine(1), Machine(2), Machine(3), Machine(4)};
  const int64_t in = 333, out = 90, most = 70;
  int64_t cases = 0;
  for (const WeightFormat format : kFormats)
    for (const Activation activation : kActivations) {
      const StoredWeight stored = random_weight(random, natural_dtype(format), out, in);
      const PackedMatrix weight = pack(implementation(), format, stored.source);
      const std::vector<float> x = random_rows(random, most * in);
      std::vector<float> alone(static_cast<size_t>(most * out));
      for (int64_t i = 0; i < most; ++i)
        linear(machines[0].context(implementation(), activation), {x.data() + i * in, 1, in}, weight,
               {alone.data() + i * out, 1, out});
      for (int64_t rows = 1; rows <= most; ++rows) {
        // Rows in random order, some twice.
        std::vector<int64_t> choice(static_cast<size_t>(rows));
        std::vector<float> some, y(static_cast<size_t>(rows * out));
        for (int64_t& i : choice) {
          i = uniform(random, 0, most - 1);
          some.insert(some.end(), x.begin() + i * in, x.begin() + (i + 1) * in);
        }
        linear(machines[rows % 4].context(implementation(), activation), {some.data(), rows, in}, weight,
               {y.data(), rows, out});
        for (int64_t i = 0; i < rows; ++i, ++cases)
          ASSERT_EQ(0, std::memcmp(y.data() + i * out, alone.data() + choice[static_cast<size_t>(i)] * out,
                                   static_cast<size_t>(out) * sizeof(float)))
              << "row " << i << " of " << rows;
      }
    }
  printf("%lld rows in changing company\n", static_cast<long long>(cases));
}

// Shapes that are cut in every way there is: several stretches of inputs for one tile (long rows), for many tiles, and
// several blocks of tiles; in groups and as heads too.
TEST_P(EveryImplementation, NoCutChangesABit) {
  struct Shape {
    int64_t out, in, rows;
  };
  constexpr Shape kShapes[] = {{20, 5500, 25}, {40, 1300, 60}, {24, 96, 600}};
  Random random(7);
  Machine machine(3);
  int cases = 0;
  for (const auto [out, in, rows] : kShapes) {
    // The reference cuts neither inputs nor rows; it needs no shape with many of both.
    if (implementation() == Implementation::kReference && in > 1000) continue;
    for (const WeightFormat format : kFormats)
      for (const Activation activation : kActivations) {
        const Context context = machine.context(implementation(), activation);
        const StoredWeight stored = random_weight(random, natural_dtype(format), out, in);
        const std::vector<float> x = random_rows(random, rows * in);
        std::vector<PackedMatrix> weights;
        for (int copy = 0; copy < 3; ++copy) weights.push_back(pack(implementation(), format, stored.source));
        std::vector<float> alone(static_cast<size_t>(rows * out)), y(alone.size());
        for (int64_t i = 0; i < rows; ++i)
          linear(context, {x.data() + i * in, 1, in}, weights[0], {alone.data() + i * out, 1, out});
        const auto check = [&](const char* what) {
          EXPECT_EQ(0, std::memcmp(y.data(), alone.data(), y.size() * sizeof(float))) << what;
          std::fill(y.begin(), y.end(), kPoison);
          ++cases;
        };
        linear(context, {x.data(), rows, in}, weights[0], {y.data(), rows, out});
        check("together");
        const RowGroup groups[] = {
            {&weights[2], 0, rows / 4}, {&weights[0], rows / 4, 1}, {&weights[1], rows / 4 + 1, rows - rows / 4 - 1}};
        grouped_linear(context, {x.data(), rows, in}, groups, {y.data(), rows, out});
        check("in groups");
        std::vector<float> copy = x;
        const int64_t tokens = rows / static_cast<int64_t>(weights.size());
        alone.resize(static_cast<size_t>(tokens * 3 * out));
        y.resize(alone.size());
        head_linear(context, {copy.data(), tokens, 3, in, 3 * in, in}, weights,
                    {y.data(), tokens, 3, out, 3 * out, out});
        check("as heads");
      }
  }
  printf("%d ways to cut a product\n", cases);
}

TEST(Workspace, GrowsAndKeepsSlotsApart) {
  Workspace workspace;
  auto* a = workspace.get_array<float>(0, 100);
  auto* b = workspace.get_array<float>(31, 100000);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a) % 64, 0u);
  std::fill_n(a, 100, 1.0f);
  std::fill_n(b, 100000, 2.0f);
  EXPECT_EQ(a[99], 1.0f);
  EXPECT_EQ(workspace.get_array<float>(0, 50), a);
  auto* grown = workspace.get_array<float>(0, 1 << 20);
  grown[(1 << 20) - 1] = 3.0f;
  EXPECT_EQ(b[99999], 2.0f);
}

}  // namespace
}  // namespace plait::kernels
