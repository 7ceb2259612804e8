#include "bench/kernel_problem.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <set>

#include "base/round.h"
#include "tensor/dtype.h"

namespace plait {
namespace {

using cuda::GemmFormat;
using cuda::GemmRows;
using cuda::GemmShape;

constexpr int64_t kBlockRows = 128;  // of kContiguous
constexpr int64_t kScaleBlock = 128;
constexpr size_t kPatternBytes = (8 << 20) - 4096 - 64;  // no multiple of a matrix' row

constexpr int64_t kCheckedRows = 24, kCheckedColumns = 24, kCheckedGaps = 4;

void add_run(RowLayout& layout, int64_t first, int64_t count, int group) {
  if (count == 0) return;
  layout.first.push_back(first);
  layout.last.push_back(first + count - 1);
  layout.group.push_back(group);
  layout.existing += count;
}

// Tiles of 128 rows, dealt to the groups in proportions from 0.7 to 1.3; the last one of a group is partly full.
void lay_out_contiguous(RowLayout& layout, int groups, int64_t rows, std::mt19937& random) {
  const int64_t tiles = std::max<int64_t>(ceil_div(rows, kBlockRows), 1);
  std::uniform_real_distribution<double> any(0.7, 1.3);
  std::vector<double> shares(static_cast<size_t>(groups));
  for (double& share : shares) share = any(random);
  const double all = std::accumulate(shares.begin(), shares.end(), 0.0);
  double before = 0;
  int64_t tile = 0;
  for (int group = 0; group < groups; ++group) {
    before += shares[static_cast<size_t>(group)] / all;
    const int64_t end = group + 1 == groups ? tiles : std::llround(before * static_cast<double>(tiles));
    if (tile == end) continue;
    ++layout.matrices;
    const int64_t first = tile * kBlockRows;
    for (; tile < end; ++tile) {
      const bool last = tile + 1 == end;
      layout.counts.push_back(last ? static_cast<int32_t>(1 + random() % kBlockRows) : kBlockRows);
      layout.block_groups.push_back(group);
    }
    add_run(layout, first, end * kBlockRows - first - kBlockRows + layout.counts.back(), group);
  }
  layout.m = layout.rows = tiles * kBlockRows;
}

void lay_out_masked(RowLayout& layout, int groups, int64_t rows, int64_t room, std::mt19937& random) {
  std::uniform_real_distribution<double> any(0.7, 1.3);
  for (int group = 0; group < groups; ++group) {
    const int64_t count = std::min<int64_t>(std::llround(static_cast<double>(rows) * any(random)), room);
    layout.counts.push_back(static_cast<int32_t>(count));
    layout.matrices += count > 0 ? 1 : 0;
    add_run(layout, group * room, count, group);
  }
  layout.m = room;
  layout.rows = room * groups;
}

size_t bytes_of(Pattern::Kind kind) {
  return kind == Pattern::Kind::kScales ? 4 : kind == Pattern::Kind::kBf16 ? 2 : 1;
}

// `count` of [0, size): the first, the last, and any others.
std::vector<int64_t> some_of(int64_t size, int64_t count, std::mt19937& random) {
  std::set<int64_t> chosen = {0, size - 1};
  for (int64_t i = 2; i < count; ++i) chosen.insert(static_cast<int64_t>(random() % static_cast<uint64_t>(size)));
  return {chosen.begin(), chosen.end()};
}

double number_at(cuda::GemmResult form, const std::vector<uint8_t>& row, size_t column) {
  if (form == cuda::GemmResult::kF32) {
    float value = 0;
    std::memcpy(&value, row.data() + column * sizeof value, sizeof value);
    return static_cast<double>(value);
  }
  BFloat16 value;
  std::memcpy(&value, row.data() + column * sizeof value, sizeof value);
  return static_cast<double>(static_cast<float>(value));
}

// A product's numbers, where its kernel looks for them.
class Product {
 public:
  Product(const GemmShape& shape, const RowLayout& layout, const GemmPatterns& patterns)
      : shape_(shape),
        layout_(layout),
        patterns_(patterns),
        blocks_k_(ceil_div(shape.k, kScaleBlock)),
        scale_rows_(round_up(layout.m, 4)) {}

  ExpectedRow::Value value(int64_t row, int group, int64_t column) const {
    double sum = 0, size = 0;
    for (int64_t block = 0; block < blocks_k_; ++block) {
      double part = 0, part_size = 0;
      for (int64_t k = block * kScaleBlock; k < std::min(shape_.k, (block + 1) * kScaleBlock); ++k) {
        const double product =
            patterns_.a.at(row * shape_.k + k) * patterns_.b.at((int64_t{group} * shape_.n + column) * shape_.k + k);
        part += product;
        part_size += std::abs(product);
      }
      const double scale = shape_.format == GemmFormat::kFp8 ? scale_of(row, group, column, block) : 1;
      sum += scale * part;
      size += scale * part_size;
    }
    // Rounding of the result, and of sums in the tensor cores: of FP8 they are cut off below the largest.
    const double rounding = shape_.result == cuda::GemmResult::kF32 ? 0 : std::ldexp(std::abs(sum), -8);
    const double allowed = rounding + std::ldexp(size, shape_.format == GemmFormat::kFp8 ? -11 : -19);
    return {column, sum, allowed};
  }

 private:
  double scale_of(int64_t row, int group, int64_t column, int64_t block) const {
    const int64_t room = shape_.rows == GemmRows::kMasked ? group : 0;
    const int64_t of_row = (room * blocks_k_ + block) * scale_rows_ + row - room * layout_.m;
    const int64_t of_weights = (group * ceil_div(shape_.n, kScaleBlock) + column / kScaleBlock) * blocks_k_ + block;
    return patterns_.a_scales.at(of_row) * patterns_.b_scales.at(of_weights);
  }

  const GemmShape& shape_;
  const RowLayout& layout_;
  const GemmPatterns& patterns_;
  int64_t blocks_k_, scale_rows_;
};

}  // namespace

int64_t usual_room(int64_t rows) {
  return round_up(2 * rows, kBlockRows);
}

RowLayout lay_out(GemmRows form, int groups, int64_t rows, int64_t room, uint32_t seed) {
  RowLayout layout;
  std::mt19937 random(seed);
  switch (form) {
    case GemmRows::kDense:
    case GemmRows::kBatched:
      layout.m = layout.rows = rows;
      layout.matrices = 1;
      add_run(layout, 0, rows, 0);
      break;
    case GemmRows::kContiguous:
      lay_out_contiguous(layout, groups, rows, random);
      break;
    case GemmRows::kMasked:
      lay_out_masked(layout, groups, rows, room, random);
      break;
  }
  return layout;
}

Pattern::Pattern(Kind kind, uint32_t seed) : kind_(kind), bytes_(kPatternBytes) {
  constexpr float kE4m3Spread = 150, kE4m3Largest = 448;
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> scale(1, 2);
  for (size_t i = 0; i < bytes_.size(); i += bytes_of(kind)) {
    if (kind == Kind::kE4m3) {
      bytes_[i] = float_to_e4m3(std::clamp(normal(random) * kE4m3Spread, -kE4m3Largest, kE4m3Largest));
    } else if (kind == Kind::kBf16) {
      const BFloat16 value(normal(random));
      std::memcpy(bytes_.data() + i, &value, sizeof value);
    } else {
      const float value = scale(random);
      std::memcpy(bytes_.data() + i, &value, sizeof value);
    }
  }
}

double Pattern::at(int64_t index) const {
  const size_t each = bytes_of(kind_), at = static_cast<size_t>(index) * each % bytes_.size();
  if (kind_ == Kind::kE4m3) return static_cast<double>(e4m3_to_float(bytes_[at]));
  if (kind_ == Kind::kBf16) {
    BFloat16 value;
    std::memcpy(&value, bytes_.data() + at, sizeof value);
    return static_cast<double>(static_cast<float>(value));
  }
  float value = 0;
  std::memcpy(&value, bytes_.data() + at, sizeof value);
  return static_cast<double>(value);
}

GemmPatterns::GemmPatterns(GemmFormat format, uint32_t seed)
    : a(format == GemmFormat::kFp8 ? Pattern::Kind::kE4m3 : Pattern::Kind::kBf16, seed),
      b(format == GemmFormat::kFp8 ? Pattern::Kind::kE4m3 : Pattern::Kind::kBf16, seed + 1),
      a_scales(Pattern::Kind::kScales, seed + 2),
      b_scales(Pattern::Kind::kScales, seed + 3) {}

std::vector<ExpectedRow> expected_rows(const GemmShape& shape, const RowLayout& layout, const GemmPatterns& patterns,
                                       uint32_t seed) {
  std::mt19937 random(seed);
  const Product product(shape, layout, patterns);
  std::vector<ExpectedRow> rows;
  // Rows of different runs, so that no group is left out for long.
  const auto runs = static_cast<int64_t>(layout.first.size());
  for (int64_t i = 0; i < kCheckedRows; ++i) {
    const auto run = static_cast<size_t>(i < runs ? i * runs / std::min(runs, kCheckedRows) : random() % runs);
    const int64_t count = layout.last[run] - layout.first[run] + 1;
    const int64_t inside = i == 0   ? 0
                           : i == 1 ? count - 1
                                    : static_cast<int64_t>(random() % static_cast<uint64_t>(count));
    ExpectedRow row{.row = layout.first[run] + inside};
    for (const int64_t column : some_of(shape.n, kCheckedColumns, random))
      row.values.push_back(product.value(row.row, layout.group[run], column));
    rows.push_back(std::move(row));
  }
  // Rows right behind those that exist.
  for (int64_t i = 0, gaps = 0; i < runs && gaps < kCheckedGaps; ++i) {
    const int64_t after = layout.last[static_cast<size_t>(i)] + 1;
    const int64_t next = i + 1 < runs ? layout.first[static_cast<size_t>(i) + 1] : layout.rows;
    if (after >= next) continue;
    rows.push_back({.row = after, .exists = false});
    ++gaps;
  }
  return rows;
}

Status check_row(cuda::GemmResult form, const ExpectedRow& expected, const std::vector<uint8_t>& row) {
  const auto each = static_cast<size_t>(element_bytes(form));
  for (size_t at = 0; at < row.size(); at += each) {
    const auto number = row.begin() + static_cast<int64_t>(at);
    const bool unwritten =
        std::all_of(number, number + static_cast<int64_t>(each), [](uint8_t byte) { return byte == kUnwritten; });
    if (unwritten == expected.exists)
      return corrupt(fmt::format("row {} column {} {}", expected.row, at / each,
                                 expected.exists ? "was not written" : "was written, and does not exist"));
  }
  for (const auto& [column, value, allowed] : expected.values) {
    const double got = number_at(form, row, static_cast<size_t>(column));
    // Not a plain comparison, which a NaN would pass.
    if (!(std::abs(got - value) <= allowed))
      return corrupt(
          fmt::format("row {} column {} is {} instead of {}, {} allowed", expected.row, column, got, value, allowed));
  }
  return {};
}

Status check_quantized_row(const cuda::QuantizeShape& shape, const Pattern& x, int64_t row,
                           const std::vector<uint8_t>& q, const std::vector<float>& scales) {
  const auto value_at = [&](int64_t column) {
    if (!shape.gated) return x.at(row * shape.k + column);
    const double gate = x.at(row * 2 * shape.k + column), up = x.at(row * 2 * shape.k + shape.k + column);
    return gate / (1 + std::exp(-gate)) * up;
  };
  for (int64_t block = 0; block < ceil_div(shape.k, kScaleBlock); ++block) {
    const int64_t begin = block * kScaleBlock, end = std::min(shape.k, begin + kScaleBlock);
    double largest = 1e-4;
    for (int64_t column = begin; column < end; ++column) largest = std::max(largest, std::abs(value_at(column)));
    const auto scale = static_cast<double>(scales[static_cast<size_t>(block)]);
    double low = largest / 448 * (1 - 1e-4), high = largest / 448 * (1 + 1e-4);
    if (shape.power_of_two) {
      low = std::exp2(std::ceil(std::log2(low)));
      high = std::exp2(std::ceil(std::log2(high)));
    }
    if (!(scale >= low && scale <= high))
      return corrupt(
          fmt::format("the scale of row {} block {} is {} instead of {} to {}", row, block, scale, low, high));
    for (int64_t column = begin; column < end; ++column) {
      const double want = value_at(column);
      const double got = scale * static_cast<double>(e4m3_to_float(q[static_cast<size_t>(column)]));
      // Half a step of e4m3, whose smallest numbers are 2^-9 apart.
      const double allowed = std::ldexp(std::abs(want), -4) * 1.001 + std::ldexp(scale, -10);
      if (!(std::abs(got - want) <= allowed))
        return corrupt(
            fmt::format("row {} column {} is {} instead of {}, {} allowed", row, column, got, want, allowed));
    }
  }
  return {};
}

}  // namespace plait
