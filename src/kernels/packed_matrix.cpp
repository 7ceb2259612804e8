#include <fmt/format.h>

#include "base/assert.h"
#include "kernels/cpu/panels.h"
#include "kernels/cpu/plain_rows.h"
#include "kernels/linear.h"

namespace plait::kernels {
namespace {

Status check_source(const PackedMatrix& matrix, int64_t first_row, const WeightSource& source) {
  if (source.cols != matrix.in_features())
    return invalid(fmt::format("a weight of shape [{}, {}] cannot become rows of a matrix with {} inputs", source.rows,
                               source.cols, matrix.in_features()));
  if (first_row < 0 || source.rows < 0 || first_row + source.rows > matrix.out_features())
    return invalid(fmt::format("rows {} to {} are outside a matrix with {} outputs", first_row, first_row + source.rows,
                               matrix.out_features()));
  switch (source.dtype) {
    case DType::kF32:
    case DType::kBF16:
    case DType::kF16:
    case DType::kF8E4M3:
      break;
    default:
      return unsupported(
          fmt::format("weights of type {} are not supported; use F32, BF16, F16 or F8_E4M3", name_of(source.dtype)));
  }
  if (matrix.format() != WeightFormat::kF8Block) return {};
  if (source.dtype != DType::kF8E4M3 || source.scales == nullptr)
    return invalid(fmt::format("a block-FP8 matrix takes F8_E4M3 weights with scales, not {}{}", name_of(source.dtype),
                               source.scales ? "" : " without scales"));
  if (source.block != kScaleInputs)
    return unsupported(
        fmt::format("FP8 scale blocks of {} are not supported in FP8 memory, only of {}", source.block, kScaleInputs));
  if (source.first_col % kScaleInputs != 0)
    return unsupported(fmt::format("a part that begins at column {}, inside a block of FP8 scales, cannot stay FP8",
                                   source.first_col));
  return {};
}

}  // namespace

PackedMatrix::PackedMatrix(Implementation implementation, WeightFormat format, int64_t out_features,
                           int64_t in_features)
    : implementation_(implementation), format_(format), out_features_(out_features), in_features_(in_features) {
  PLAIT_ASSERT(out_features > 0 && in_features > 0, "a matrix needs outputs and inputs");
  if (implementation == Implementation::kFast) {
    const PanelLayout layout(format, out_features, in_features);
    data_ = Buffer(static_cast<size_t>(layout.panels * layout.panel_bytes));
    return;
  }
  data_ = Buffer(plain_data_bytes(format, out_features, in_features));
  scales_ = Buffer(plain_scale_bytes(format, out_features, in_features));
}

Status PackedMatrix::pack_rows(int64_t first_row, const WeightSource& source) {
  PLAIT_RETURN_IF_ERROR(check_source(*this, first_row, source));
  if (implementation_ == Implementation::kFast)
    pack_panels(*this, first_row, source);
  else
    pack_plain_rows(*this, first_row, source);
  return {};
}

float PackedMatrix::at(int64_t i, int64_t j) const {
  if (implementation_ == Implementation::kFast) return panel_element(*this, i, j);
  std::vector<float> row(static_cast<size_t>(in_features_));
  decode_plain_row(*this, i, row.data());
  return row[static_cast<size_t>(j)];
}

}  // namespace plait::kernels
