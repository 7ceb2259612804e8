#include "tests/kernels/cuda/gemm_problem.h"

#include <cmath>
#include <limits>

#include "base/round.h"
#include "tensor/dtype.h"

namespace plait::cuda::testing {
namespace {

constexpr uint8_t kE4m3Nan = 0x7f;
constexpr uint16_t kBf16Nan = 0x7fc0;

// [count] numbers between -2 and 2 that the format has.
std::vector<uint8_t> random_numbers(GemmFormat format, int64_t count, std::mt19937& random) {
  std::vector<uint8_t> bytes(static_cast<size_t>(count * (format == GemmFormat::kFp8 ? 1 : 2)));
  std::uniform_real_distribution<float> any(-2, 2);
  for (int64_t i = 0; i < count; ++i) {
    const float value = any(random);
    if (format == GemmFormat::kFp8)
      bytes[static_cast<size_t>(i)] = float_to_e4m3(value);
    else
      reinterpret_cast<BFloat16*>(bytes.data())[i] = BFloat16(value);
  }
  return bytes;
}

std::vector<float> random_scales(int64_t count, std::mt19937& random) {
  std::uniform_real_distribution<float> any(0.25F, 2);
  std::vector<float> scales(static_cast<size_t>(count));
  for (float& scale : scales) scale = any(random);
  return scales;
}

double number_at(GemmFormat format, const std::vector<uint8_t>& bytes, int64_t i) {
  if (format == GemmFormat::kFp8) return static_cast<double>(e4m3_to_float(bytes[static_cast<size_t>(i)]));
  return static_cast<double>(static_cast<float>(reinterpret_cast<const BFloat16*>(bytes.data())[i]));
}

}  // namespace

GemmData::GemmData(const GemmProblem& problem_, int64_t block_m, uint32_t seed) : problem(problem_) {
  const GemmShape& shape = problem.shape;
  std::mt19937 random(seed);
  switch (shape.rows) {
    case GemmRows::kDense:
      m = problem.counts[0];
      row_group.assign(static_cast<size_t>(m), 0);
      break;
    case GemmRows::kContiguous:
      for (size_t group = 0; group < problem.counts.size(); ++group) {
        for (int64_t first = 0; first < problem.counts[group]; first += block_m) {
          const int64_t count = std::min(problem.counts[group] - first, block_m);
          row_counts.push_back(static_cast<int32_t>(count));
          block_groups.push_back(static_cast<int32_t>(group));
          row_group.insert(row_group.end(), static_cast<size_t>(count), static_cast<int64_t>(group));
          row_group.insert(row_group.end(), static_cast<size_t>(block_m - count), -1);
        }
      }
      // Room that nobody uses, as a static buffer has.
      row_counts.push_back(0);
      block_groups.push_back(0);
      row_group.insert(row_group.end(), static_cast<size_t>(block_m), -1);
      m = static_cast<int64_t>(row_group.size());
      break;
    case GemmRows::kMasked:
      m = problem.room;
      for (size_t group = 0; group < problem.counts.size(); ++group) {
        row_counts.push_back(static_cast<int32_t>(problem.counts[group]));
        row_group.insert(row_group.end(), static_cast<size_t>(problem.counts[group]), static_cast<int64_t>(group));
        row_group.insert(row_group.end(), static_cast<size_t>(m - problem.counts[group]), -1);
      }
      break;
  }
  rows = static_cast<int64_t>(row_group.size());
  scale_rows = ceil_div(m, 4) * 4;
  a = random_numbers(shape.format, rows * shape.k, random);
  b = random_numbers(shape.format, shape.groups * shape.n * shape.k, random);
  if (shape.format == GemmFormat::kFp8) {
    const int64_t blocks_k = ceil_div(shape.k, 128);
    a_scales = random_scales(blocks_k * scale_rows * (shape.rows == GemmRows::kMasked ? shape.groups : 1), random);
    b_scales = random_scales(shape.groups * ceil_div(shape.n, 128) * blocks_k, random);
  }
  for (int64_t row = 0; row < rows; ++row) {
    if (group_of(row) >= 0) continue;
    for (int64_t k = 0; k < shape.k; ++k) {
      const int64_t i = row * shape.k + k;
      if (shape.format == GemmFormat::kFp8)
        a[static_cast<size_t>(i)] = kE4m3Nan;
      else
        reinterpret_cast<BFloat16*>(a.data())[i].bits = kBf16Nan;
    }
  }
}

double GemmData::a_at(int64_t row, int64_t k) const {
  const GemmShape& shape = problem.shape;
  const double value = number_at(shape.format, a, row * shape.k + k);
  if (shape.format == GemmFormat::kBf16) return value;
  const int64_t group = shape.rows == GemmRows::kMasked ? row / m : 0;
  const int64_t place = (group * ceil_div(shape.k, 128) + k / 128) * scale_rows + row - group * m;
  return value * static_cast<double>(a_scales[static_cast<size_t>(place)]);
}

double GemmData::b_at(int64_t group, int64_t n, int64_t k) const {
  const GemmShape& shape = problem.shape;
  const double value = number_at(shape.format, b, (group * shape.n + n) * shape.k + k);
  if (shape.format == GemmFormat::kBf16) return value;
  const int64_t place = (group * ceil_div(shape.n, 128) + n / 128) * ceil_div(shape.k, 128) + k / 128;
  return value * static_cast<double>(b_scales[static_cast<size_t>(place)]);
}

Result<GemmOnDevice> GemmOnDevice::make(const Device& device, const Stream& stream, const GemmData& data) {
  GemmOnDevice on;
  const auto copy = [&](DeviceBuffer& buffer, const auto& values) -> Status {
    const size_t bytes = values.size() * sizeof(values[0]);
    PLAIT_ASSIGN_OR_RETURN(buffer, DeviceBuffer::allocate(device, bytes));
    return buffer.write(values.data(), bytes, stream);
  };
  PLAIT_RETURN_IF_ERROR(copy(on.a, data.a));
  PLAIT_RETURN_IF_ERROR(copy(on.b, data.b));
  PLAIT_RETURN_IF_ERROR(copy(on.a_scales, data.a_scales));
  PLAIT_RETURN_IF_ERROR(copy(on.b_scales, data.b_scales));
  PLAIT_RETURN_IF_ERROR(copy(on.row_counts, data.row_counts));
  PLAIT_RETURN_IF_ERROR(copy(on.block_groups, data.block_groups));
  PLAIT_ASSIGN_OR_RETURN(on.d,
                         DeviceBuffer::allocate(device, static_cast<size_t>(data.rows * data.problem.shape.n) * 2));
  on.operands = {.a = on.a.pointer(),
                 .a_scales = on.a_scales.pointer(),
                 .scale_rows = data.scale_rows,
                 .b = on.b.pointer(),
                 .b_scales = on.b_scales.pointer(),
                 .d = on.d.pointer(),
                 .m = data.m,
                 .row_counts = on.row_counts.pointer(),
                 .block_groups = on.block_groups.pointer()};
  PLAIT_RETURN_IF_ERROR(stream.wait());
  return on;
}

}  // namespace plait::cuda::testing
