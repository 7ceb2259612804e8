#include "engine/row_blocks.h"

namespace plait {

RowBlock& RowBlock::operator=(RowBlock&& other) noexcept {
  if (this == &other) return *this;
  release();
  arena_ = std::exchange(other.arena_, nullptr);
  buffer_ = std::move(other.buffer_);
  view_ = std::exchange(other.view_, {});
  return *this;
}

void RowBlock::release() {
  if (buffer_) arena_->free_.push_back(std::move(buffer_));
}

// The smallest free buffer that is large enough. A few dozen at most: a plan holds two or three blocks at a time.
RowBlock RowArena::take(int64_t rows, int64_t cols) {
  const size_t bytes = static_cast<size_t>(rows * cols) * sizeof(float);
  size_t best = free_.size();
  for (size_t i = 0; i < free_.size(); ++i)
    if (free_[i]->size_bytes() >= bytes && (best == free_.size() || free_[i]->size_bytes() < free_[best]->size_bytes()))
      best = i;
  std::unique_ptr<Buffer> buffer;
  if (best < free_.size()) {
    buffer = std::move(free_[best]);
    free_.erase(free_.begin() + static_cast<std::ptrdiff_t>(best));
  } else {
    // Nothing fits: the largest free one grows, so that the arena does not keep what became too small.
    const auto largest = std::max_element(
        free_.begin(), free_.end(), [](const auto& a, const auto& b) { return a->size_bytes() < b->size_bytes(); });
    if (largest != free_.end()) {
      bytes_ -= (*largest)->size_bytes();
      free_.erase(largest);
    }
    buffer = std::make_unique<Buffer>(std::max<size_t>(bytes, 64));
    bytes_ += buffer->size_bytes();
  }
  const Rows view(buffer->as<float>(), rows, cols);
  return RowBlock(this, std::move(buffer), view);
}

size_t RowArena::size_bytes() const {
  return bytes_;
}

}  // namespace plait
