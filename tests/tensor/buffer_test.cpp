#include "tensor/buffer.h"

#include <algorithm>
#include <cstdint>

#include <gtest/gtest.h>

#include "tensor/matrix.h"

namespace plait {
namespace {

TEST(Buffer, IsZeroedAlignedAndWritableToItsEnd) {
  for (const size_t bytes : {size_t{1}, size_t{63}, size_t{4096}, (size_t{2} << 20) - 1, (size_t{2} << 20) + 1}) {
    Buffer buffer(bytes);
    ASSERT_NE(buffer.data(), nullptr);
    EXPECT_EQ(buffer.size_bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0U);
    auto* begin = buffer.as<uint8_t>();
    EXPECT_TRUE(std::all_of(begin, begin + bytes, [](uint8_t byte) { return byte == 0; }));
    begin[0] = begin[bytes - 1] = 1;
  }
}

TEST(Buffer, EmptyOnesOwnNothing) {
  EXPECT_EQ(Buffer().data(), nullptr);
  EXPECT_EQ(Buffer(0).data(), nullptr);
}

TEST(Buffer, MovingHandsTheMemoryOver) {
  Buffer first(100);
  first.as<int>()[3] = 7;
  const void* memory = first.data();
  Buffer second(std::move(first));
  EXPECT_EQ(second.data(), memory);
  EXPECT_EQ(first.data(), nullptr);  // NOLINT: a moved-from buffer is empty
  Buffer third(50);
  third = std::move(second);
  EXPECT_EQ(third.as<int>()[3], 7);
  EXPECT_EQ(third.size_bytes(), 100U);
}

TEST(BufferDeathTest, MemoryThatIsNotThereEndsWithItsSize) {
  EXPECT_DEATH(Buffer(size_t{1} << 62), "out of memory: cannot map 4.00 EiB");
}

TEST(MatrixView, SlicesShareTheMemory) {
  float data[24];
  for (int i = 0; i < 24; ++i) data[i] = static_cast<float>(i);
  const Rows matrix(data, 4, 6);
  const Rows part = matrix.slice_rows(1, 2).slice_cols(2, 3);
  EXPECT_EQ(part.rows, 2);
  EXPECT_EQ(part.cols, 3);
  EXPECT_EQ(part.stride, 6);
  EXPECT_EQ(part.row(0)[0], 8);
  EXPECT_EQ(part.row(1)[2], 16);
  const ConstRows constant = part;
  EXPECT_EQ(constant.row(1), part.row(1));
}

}  // namespace
}  // namespace plait
