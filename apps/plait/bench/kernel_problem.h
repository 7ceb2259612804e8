// Operands of GPU kernels that are timed, as the host knows them: where rows lie, what numbers there are, and what some
// results must be.
//
// Values and pure functions. Numbers are a random pattern that is repeated through an operand, so that gigabytes can be
// filled on the device and any of them is known here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/quantize.h"

namespace plait {

struct RowLayout {
  int64_t m = 0;                      // as GemmOperands has it
  int64_t rows = 0;                   // in the operands, those that do not exist included
  int64_t existing = 0;               // rows that exist
  int matrices = 0;                   // weight matrices that any row needs
  std::vector<int32_t> counts;        // GemmOperands::row_counts
  std::vector<int32_t> block_groups;  // kContiguous
  std::vector<int64_t> first, last;   // of each run of rows that exist, ascending; both inclusive
  std::vector<int> group;             // of each run
};

// `rows` as choose_gemm counts them; kMasked: groups get about as many each, and room for `room`.
RowLayout lay_out(cuda::GemmRows form, int groups, int64_t rows, int64_t room, uint32_t seed);
// Room that a masked group gets for so many rows on average, if nobody says anything else.
int64_t usual_room(int64_t rows);

class Pattern {
 public:
  enum class Kind { kE4m3, kBf16, kScales };

  // Numbers as quantised activations and weights have them: normal, the largest of e4m3 near its limit; what is
  // multiplied decides how much power that takes, and with it the clock. Scales from 1 to 2.
  Pattern(Kind kind, uint32_t seed);

  const std::vector<uint8_t>& bytes() const { return bytes_; }
  double at(int64_t index) const;  // number `index` of an operand that begins with the pattern

 private:
  Kind kind_;
  std::vector<uint8_t> bytes_;
};

// What all operands of one kind are filled with.
struct GemmPatterns {
  GemmPatterns(cuda::GemmFormat format, uint32_t seed);
  Pattern a, b, a_scales, b_scales;
};

// Some results of a product: all columns of `rows` must have been written, and some of them are known.
struct ExpectedRow {
  struct Value {
    int64_t column = 0;
    double value = 0, allowed = 0;  // summed in double precision; how far a result may be off
  };
  int64_t row = 0;
  bool exists = true;  // else nothing may have been written
  std::vector<Value> values;
};
std::vector<ExpectedRow> expected_rows(const cuda::GemmShape& shape, const RowLayout& layout,
                                       const GemmPatterns& patterns, uint32_t seed);
// `row`: [n] numbers as the device has them, in memory that was filled with kUnwritten, which makes numbers that no sum
// is. kCorrupt: says what is wrong.
inline constexpr uint8_t kUnwritten = 0xff;
Status check_row(cuda::GemmResult form, const ExpectedRow& expected, const std::vector<uint8_t>& row);

// A row of a quantiser's result; x as Pattern kBf16 has it. `q` [k], `scales` [ceil(k / 128)].
Status check_quantized_row(const cuda::QuantizeShape& shape, const Pattern& x, int64_t row,
                           const std::vector<uint8_t>& q, const std::vector<float>& scales);

}  // namespace plait
