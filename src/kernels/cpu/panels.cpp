#include "kernels/cpu/panels.h"

#include "base/assert.h"
#include "base/round.h"

namespace plait::kernels {
namespace {

constexpr int64_t kPaddedInputs = 32;
constexpr int64_t kF8GroupBytes = kScaleInputs * kPanelOutputs + kPanelOutputs * int64_t{sizeof(float)};

// Scatters rows of pairs into a panel: source row r goes to output first_output + r. `Pair` is two stored elements;
// pairs of one output are 16 pairs apart. Inputs go in short stretches, so that the lines written stay in the L1 cache
// until all rows have filled them.
template <typename Pair>
void scatter_pairs(const PanelLayout& layout, std::byte* panel, int64_t first_output, int64_t rows,
                   const std::byte* source, int64_t source_stride_bytes) {
  constexpr int64_t kStretch = kScaleInputs;
  for (int64_t k = 0; k < layout.in_features; k += kStretch) {
    const int64_t pairs = std::min(kStretch, layout.in_features - k) / 2;
    for (int64_t r = 0; r < rows; ++r) {
      const std::byte* from = source + r * source_stride_bytes + k * int64_t{sizeof(Pair)} / 2;
      std::byte* to = panel + layout.pair_offset(k, first_output + r);
      for (int64_t p = 0; p < pairs; ++p)
        std::memcpy(to + p * kPanelOutputs * int64_t{sizeof(Pair)}, from + p * int64_t{sizeof(Pair)}, sizeof(Pair));
    }
  }
  if (layout.in_features % 2 == 0) return;
  const int64_t last = layout.in_features - 1;
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(panel + layout.pair_offset(last, first_output + r),
                source + r * source_stride_bytes + last * int64_t{sizeof(Pair)} / 2, sizeof(Pair) / 2);
}

void scatter_floats(const PanelLayout& layout, std::byte* panel, int64_t output, const float* row) {
  for (int64_t k = 0; k < layout.in_features; ++k)
    std::memcpy(panel + (k * kPanelOutputs + output) * int64_t{sizeof(float)}, row + k, sizeof(float));
}

void scatter_scales(const PanelLayout& layout, std::byte* panel, int64_t output, const std::byte* scales) {
  for (int64_t k = 0; k < layout.in_features; k += kScaleInputs, scales += sizeof(float)) {
    float scale;
    std::memcpy(&scale, scales, sizeof(float));
    scale *= kF8ScaleFactor;
    std::memcpy(panel + layout.scale_offset(k, output), &scale, sizeof(float));
  }
}

// Packs source rows [row, row + rows), which lie in one panel from output `first_output` on.
void pack_into_panel(const PanelLayout& layout, std::byte* panel, int64_t first_output, const WeightSource& source,
                     int64_t row, int64_t rows, std::vector<float>& decoded) {
  const int64_t in = layout.in_features;
  const int64_t row_bytes = source.stride() * size_of(source.dtype);
  const std::byte* from = source.row(row);
  if (layout.format == WeightFormat::kF8Block) {
    scatter_pairs<uint16_t>(layout, panel, first_output, rows, from, row_bytes);
    for (int64_t r = 0; r < rows; ++r) scatter_scales(layout, panel, first_output + r, source.scale_row(row + r));
    return;
  }
  if (layout.format == WeightFormat::kBF16 && source.dtype == DType::kBF16) {
    scatter_pairs<uint32_t>(layout, panel, first_output, rows, from, row_bytes);
    return;
  }
  decoded.resize(static_cast<size_t>(in));
  std::vector<BFloat16> rounded(static_cast<size_t>(in));
  for (int64_t r = 0; r < rows; ++r) {
    source.decode_row(row + r, decoded.data());
    if (layout.format == WeightFormat::kF32) {
      scatter_floats(layout, panel, first_output + r, decoded.data());
    } else {
      std::transform(decoded.begin(), decoded.end(), rounded.begin(), [](float value) { return BFloat16(value); });
      scatter_pairs<uint32_t>(layout, panel, first_output + r, 1, reinterpret_cast<const std::byte*>(rounded.data()),
                              in * int64_t{sizeof(BFloat16)});
    }
  }
}

template <typename T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

}  // namespace

PanelLayout::PanelLayout(WeightFormat format_, int64_t out_features_, int64_t in_features_)
    : format(format_),
      out_features(out_features_),
      in_features(in_features_),
      padded_in(round_up(in_features_, kPaddedInputs)),
      panels((out_features_ + kPanelOutputs - 1) / kPanelOutputs),
      panel_bytes(padded_in * kPanelOutputs * element_bytes()) {
  if (format == WeightFormat::kF8Block)
    panel_bytes += round_up(padded_in, kScaleInputs) / kScaleInputs * kPanelOutputs * int64_t{sizeof(float)};
}

int64_t PanelLayout::element_bytes() const {
  return format == WeightFormat::kF32 ? 4 : format == WeightFormat::kBF16 ? 2 : 1;
}

int64_t PanelLayout::input_offset(int64_t k) const {
  return format == WeightFormat::kF32 ? k * kPanelOutputs * int64_t{sizeof(float)} : pair_offset(k, 0);
}

int64_t PanelLayout::pair_offset(int64_t k, int64_t o) const {
  switch (format) {
    case WeightFormat::kF32:
      break;
    case WeightFormat::kBF16:
      return (k / 2 * kPanelOutputs + o) * 4;
    case WeightFormat::kF8Block:
      return k / kScaleInputs * kF8GroupBytes + (k % kScaleInputs / 2 * kPanelOutputs + o) * 2;
  }
  PLAIT_ASSERT(false, "float32 panels have no pairs");
  return 0;
}

int64_t PanelLayout::scale_offset(int64_t k, int64_t o) const {
  const int64_t begin = k / kScaleInputs * kScaleInputs;
  return k / kScaleInputs * kF8GroupBytes + std::min(kScaleInputs, padded_in - begin) * kPanelOutputs +
         o * int64_t{sizeof(float)};
}

void pack_panels(PackedMatrix& matrix, int64_t first_row, const WeightSource& source) {
  const PanelLayout layout(matrix);
  std::vector<float> decoded;
  for (int64_t row = 0; row < source.rows;) {
    const int64_t panel = (first_row + row) / kPanelOutputs, output = (first_row + row) % kPanelOutputs;
    const int64_t rows = std::min(kPanelOutputs - output, source.rows - row);
    pack_into_panel(layout, matrix.data().as<std::byte>() + panel * layout.panel_bytes, output, source, row, rows,
                    decoded);
    row += rows;
  }
}

float panel_element(const PackedMatrix& matrix, int64_t i, int64_t j) {
  const PanelLayout layout(matrix);
  const std::byte* panel = matrix.data().as<std::byte>() + i / kPanelOutputs * layout.panel_bytes;
  const int64_t output = i % kPanelOutputs;
  switch (layout.format) {
    case WeightFormat::kF32:
      return load<float>(panel + (j * kPanelOutputs + output) * 4);
    case WeightFormat::kBF16:
      return static_cast<float>(load<BFloat16>(panel + layout.pair_offset(j / 2 * 2, output) + j % 2 * 2));
    case WeightFormat::kF8Block: {
      const auto bits = load<uint8_t>(panel + layout.pair_offset(j / 2 * 2, output) + j % 2);
      return e4m3_to_float(bits) * (load<float>(panel + layout.scale_offset(j, output)) / kF8ScaleFactor);
    }
  }
  return 0;
}

}  // namespace plait::kernels
