#include "tests/kernels/cuda/gemm_problem.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "base/round.h"
#include "tensor/dtype.h"

namespace plait::cuda::testing {
namespace {

constexpr uint8_t kE4m3Nan = 0x7f;
constexpr uint16_t kBf16Nan = 0x7fc0;

// [count] numbers between -2 and 2 that the format has.
std::vector<uint8_t> random_numbers(GemmFormat format, int64_t count, std::mt19937_64& random) {
  std::vector<uint8_t> bytes(static_cast<size_t>(count * element_bytes(format)));
  if (format == GemmFormat::kFp8) {
    constexpr uint64_t kSmallExponents = 0xbfbfbfbfbfbfbfbf;
    for (size_t i = 0; i < bytes.size(); i += 8) {
      const auto eight = std::bit_cast<std::array<uint8_t, 8>>(random() & kSmallExponents);
      std::copy_n(eight.begin(), std::min<size_t>(8, bytes.size() - i), bytes.begin() + static_cast<ptrdiff_t>(i));
    }
    return bytes;
  }
  auto* numbers = reinterpret_cast<BFloat16*>(bytes.data());
  uint64_t bits = 0;
  for (int64_t i = 0; i < count; ++i, bits >>= 16) {
    if (i % 4 == 0) bits = random();
    numbers[i] = BFloat16(std::ldexp(static_cast<float>(static_cast<int16_t>(bits & 0xffff)), -14));
  }
  return bytes;
}

std::vector<float> random_scales(int64_t count, std::mt19937_64& random) {
  std::uniform_real_distribution<float> any(0.25F, 2);
  std::vector<float> scales(static_cast<size_t>(count));
  for (float& scale : scales) scale = any(random);
  return scales;
}

std::array<float, 256> e4m3_values() {
  std::array<float, 256> values{};
  for (size_t i = 0; i < values.size(); ++i) values[i] = e4m3_to_float(static_cast<uint8_t>(i));
  return values;
}

// A row of numbers of one of the formats.
class NumberRow {
 public:
  NumberRow(GemmFormat format, const std::vector<uint8_t>& bytes, int64_t first)
      : fp8_(format == GemmFormat::kFp8), bytes_(bytes.data() + first * element_bytes(format)) {}
  double operator[](int64_t i) const {
    static const std::array<float, 256> kValues = e4m3_values();
    if (fp8_) return static_cast<double>(kValues[bytes_[i]]);
    return static_cast<double>(static_cast<float>(reinterpret_cast<const BFloat16*>(bytes_)[i]));
  }

 private:
  bool fp8_;
  const uint8_t* bytes_;
};

}  // namespace

GemmData::GemmData(const GemmProblem& problem_, int64_t block_m, uint32_t seed) : problem(problem_) {
  const GemmShape& shape = problem.shape;
  std::mt19937_64 random(seed);
  place_rows(block_m);
  rows = static_cast<int64_t>(row_group.size());
  scale_rows = round_up(m, 4);
  place_numbers();
  a = random_numbers(shape.format, a_count, random);
  b = random_numbers(shape.format, shape.groups * shape.n * shape.k, random);
  if (shape.format == GemmFormat::kFp8) {
    const int64_t blocks_k = ceil_div(shape.k, 128);
    a_scales = random_scales(blocks_k * scale_rows * (shape.rows == GemmRows::kMasked ? shape.groups : 1), random);
    b_scales = random_scales(shape.groups * ceil_div(shape.n, 128) * blocks_k, random);
  }
  spoil_missing_rows();
  if (shape.rows == GemmRows::kBatched) spoil_gaps();
}

void GemmData::place_rows(int64_t block_m) {
  const auto add = [&](int64_t count, int64_t group) {
    row_group.insert(row_group.end(), static_cast<size_t>(count), group);
  };
  switch (problem.shape.rows) {
    case GemmRows::kDense:
      m = problem.counts[0];
      add(m, 0);
      break;
    case GemmRows::kContiguous:
      for (size_t group = 0; group < problem.counts.size(); ++group) {
        for (int64_t first = 0; first < problem.counts[group]; first += block_m) {
          const int64_t count = std::min(problem.counts[group] - first, block_m);
          row_counts.push_back(static_cast<int32_t>(count));
          block_groups.push_back(static_cast<int32_t>(group));
          add(count, static_cast<int64_t>(group));
          add(block_m - count, -1);
        }
      }
      // Room that nobody uses, as a static buffer has.
      row_counts.push_back(0);
      block_groups.push_back(0);
      add(block_m, -1);
      m = static_cast<int64_t>(row_group.size());
      break;
    case GemmRows::kBatched:
      m = problem.counts[0];
      for (int64_t group = 0; group < problem.shape.groups; ++group) add(m, group);
      break;
    case GemmRows::kMasked:
      m = problem.room;
      for (size_t group = 0; group < problem.counts.size(); ++group) {
        row_counts.push_back(static_cast<int32_t>(problem.counts[group]));
        add(problem.counts[group], static_cast<int64_t>(group));
        add(m - problem.counts[group], -1);
      }
      break;
  }
}

void GemmData::place_numbers() {
  constexpr int64_t kBehindRow = 8;
  const GemmShape& shape = problem.shape;
  a_row_stride = shape.k;
  d_row_stride = shape.n;
  if (shape.rows == GemmRows::kBatched) {
    a_group_stride = shape.k + problem.room;
    d_group_stride = shape.n + problem.room;
    a_row_stride = shape.groups * a_group_stride + kBehindRow;
    d_row_stride = shape.groups * d_group_stride + kBehindRow;
  }
  if (rows == 0) return;
  a_count = a_begin(rows - 1) + shape.k;
  d_count = d_begin(rows - 1) + shape.n;
}

// As long as the format is bfloat16, which is all that kBatched takes.
void GemmData::spoil_gaps() {
  const auto* numbers = reinterpret_cast<const BFloat16*>(a.data());
  BFloat16 nan;
  nan.bits = kBf16Nan;
  std::vector<BFloat16> spoiled(static_cast<size_t>(a_count), nan);
  for (int64_t row = 0; row < rows; ++row)
    std::copy_n(numbers + a_begin(row), problem.shape.k, spoiled.begin() + a_begin(row));
  std::memcpy(a.data(), spoiled.data(), a.size());
}

void GemmData::spoil_missing_rows() {
  const GemmShape& shape = problem.shape;
  const int64_t blocks_k = ceil_div(shape.k, 128);
  for (int64_t row = 0; row < rows; ++row) {
    if (group_of(row) >= 0) continue;
    if (shape.format == GemmFormat::kBf16) {
      BFloat16 nan;
      nan.bits = kBf16Nan;
      std::fill_n(reinterpret_cast<BFloat16*>(a.data()) + row * shape.k, shape.k, nan);
      continue;
    }
    std::fill_n(a.begin() + row * shape.k, shape.k, kE4m3Nan);
    const int64_t room = shape.rows == GemmRows::kMasked ? row / m : 0;
    for (int64_t block = 0; block < blocks_k; ++block)
      a_scales[static_cast<size_t>((room * blocks_k + block) * scale_rows + row - room * m)] =
          std::numeric_limits<float>::quiet_NaN();
  }
}

GemmData::Exact GemmData::exact(int64_t row, int64_t n) const {
  const GemmShape& shape = problem.shape;
  const bool fp8 = shape.format == GemmFormat::kFp8;
  const int64_t group = group_of(row), room = shape.rows == GemmRows::kMasked ? row / m : 0;
  const int64_t blocks_k = ceil_div(shape.k, 128);
  const NumberRow left(shape.format, a, a_begin(row)), right(shape.format, b, (group * shape.n + n) * shape.k);
  Exact exact;
  for (int64_t block = 0; block < blocks_k; ++block) {
    double sum = 0, size = 0, scale = 1;
    for (int64_t k = block * 128; k < std::min(shape.k, block * 128 + 128); ++k) {
      const double product = left[k] * right[k];
      sum += product;
      size += std::abs(product);
    }
    if (fp8)
      scale =
          static_cast<double>(a_scales[static_cast<size_t>((room * blocks_k + block) * scale_rows + row - room * m)]) *
          static_cast<double>(
              b_scales[static_cast<size_t>((group * ceil_div(shape.n, 128) + n / 128) * blocks_k + block)]);
    exact.sum += sum * scale;
    exact.size += size * scale;
  }
  return exact;
}

Result<GemmOnDevice> GemmOnDevice::make(const Device& device, const Stream& stream, const GemmData& data,
                                        size_t guard_bytes) {
  GemmOnDevice on;
  const auto copy = [&](GuardedBuffer& buffer, const auto& values) -> Status {
    PLAIT_ASSIGN_OR_RETURN(buffer, GuardedBuffer::of(device, stream, values, guard_bytes));
    return {};
  };
  PLAIT_RETURN_IF_ERROR(copy(on.a, data.a));
  PLAIT_RETURN_IF_ERROR(copy(on.b, data.b));
  PLAIT_RETURN_IF_ERROR(copy(on.a_scales, data.a_scales));
  PLAIT_RETURN_IF_ERROR(copy(on.b_scales, data.b_scales));
  PLAIT_RETURN_IF_ERROR(copy(on.row_counts, data.row_counts));
  PLAIT_RETURN_IF_ERROR(copy(on.block_groups, data.block_groups));
  const GemmShape& shape = data.problem.shape;
  const auto d_bytes = static_cast<size_t>(data.d_count * element_bytes(shape.result));
  PLAIT_ASSIGN_OR_RETURN(on.d, GuardedBuffer::make(device, stream, d_bytes, guard_bytes));
  on.operands = {.a = on.a.pointer(),
                 .a_scales = on.a_scales.pointer(),
                 .scale_rows = data.scale_rows,
                 .b = on.b.pointer(),
                 .b_scales = on.b_scales.pointer(),
                 .d = on.d.pointer(),
                 .m = data.m,
                 .row_counts = on.row_counts.pointer(),
                 .block_groups = on.block_groups.pointer(),
                 .a_row_stride = data.a_row_stride,
                 .a_group_stride = data.a_group_stride,
                 .d_row_stride = data.d_row_stride,
                 .d_group_stride = data.d_group_stride};
  PLAIT_RETURN_IF_ERROR(stream.wait());
  return on;
}

Status GemmOnDevice::check_guards(const Stream& stream) const {
  const std::pair<const char*, const GuardedBuffer*> all[] = {{"a", &a},
                                                              {"b", &b},
                                                              {"a_scales", &a_scales},
                                                              {"b_scales", &b_scales},
                                                              {"row_counts", &row_counts},
                                                              {"d", &d},
                                                              {"block_groups", &block_groups}};
  for (const auto& [name, buffer] : all) PLAIT_RETURN_IF_ERROR(buffer->check(name, stream));
  return {};
}

}  // namespace plait::cuda::testing
