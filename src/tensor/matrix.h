// Views of row-major matrices. A view owns nothing; whoever holds the memory outlives it.
#pragma once

#include <cstdint>
#include <type_traits>

namespace plait {

// [rows, cols], row i starts at data + i * stride. T may be const.
template <typename T>
struct MatrixView {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // elements, >= cols

  MatrixView() = default;
  MatrixView(T* data_, int64_t rows_, int64_t cols_) : MatrixView(data_, rows_, cols_, cols_) {}
  MatrixView(T* data_, int64_t rows_, int64_t cols_, int64_t stride_)
      : data(data_), rows(rows_), cols(cols_), stride(stride_) {}
  // A view of mutable elements reads as one of const elements.
  template <typename U>
    requires(std::is_same_v<T, const U>)
  MatrixView(const MatrixView<U>& other) : MatrixView(other.data, other.rows, other.cols, other.stride) {}

  T* row(int64_t i) const { return data + i * stride; }
  MatrixView slice_rows(int64_t begin, int64_t count) const { return {row(begin), count, cols, stride}; }
  MatrixView slice_cols(int64_t begin, int64_t count) const { return {data + begin, rows, count, stride}; }
};

using Rows = MatrixView<float>;
using ConstRows = MatrixView<const float>;

}  // namespace plait
