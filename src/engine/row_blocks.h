// Activations of one rank while a plan is walked: blocks of rows that go back to an arena when they are dropped.
//
// An arena belongs to one rank's thread and outlives its blocks. Blocks are 64-byte aligned, with undefined contents.
#pragma once

#include <memory>
#include <vector>

#include "tensor/buffer.h"
#include "tensor/matrix.h"

namespace plait {

class RowArena;

// [rows, cols], contiguous. Move-only.
class RowBlock {
 public:
  RowBlock() = default;
  RowBlock(RowBlock&& other) noexcept { *this = std::move(other); }
  RowBlock& operator=(RowBlock&& other) noexcept;
  ~RowBlock() { release(); }

  Rows view() const { return view_; }
  int64_t rows() const { return view_.rows; }
  int64_t cols() const { return view_.cols; }
  int64_t elements() const { return view_.rows * view_.cols; }
  float* data() const { return view_.data; }

 private:
  friend class RowArena;
  RowBlock(RowArena* arena, std::unique_ptr<Buffer> buffer, Rows view)
      : arena_(arena), buffer_(std::move(buffer)), view_(view) {}
  void release();

  RowArena* arena_ = nullptr;
  std::unique_ptr<Buffer> buffer_;
  Rows view_;
};

class RowArena {
 public:
  RowBlock take(int64_t rows, int64_t cols);
  size_t size_bytes() const;  // of all blocks, in use or free

 private:
  friend class RowBlock;
  std::vector<std::unique_ptr<Buffer>> free_;
  size_t bytes_ = 0;
};

}  // namespace plait
