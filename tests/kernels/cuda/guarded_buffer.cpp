#include "tests/kernels/cuda/guarded_buffer.h"

#include <algorithm>

#include <fmt/format.h>

namespace plait::cuda::testing {
namespace {

constexpr uint8_t kGuard = 0xff;  // a NaN in e4m3, bfloat16 and float32; -1 in int32

}  // namespace

Result<GuardedBuffer> GuardedBuffer::make(const Device& device, const Stream& stream, size_t bytes,
                                          size_t guard_bytes) {
  GuardedBuffer buffer;
  buffer.driver_ = &device.driver();
  buffer.bytes_ = bytes;
  buffer.guard_bytes_ = guard_bytes;
  PLAIT_ASSIGN_OR_RETURN(buffer.all_, DeviceBuffer::allocate(device, bytes + 2 * guard_bytes));
  if (guard_bytes > 0) PLAIT_RETURN_IF_ERROR(buffer.all_.fill(kGuard, stream));
  return buffer;
}

Status GuardedBuffer::write(const void* from, const Stream& stream) {
  if (bytes_ == 0) return {};
  return driver_->check(driver_->MemcpyHtoDAsync(pointer(), from, bytes_, stream.handle()), "copying to the GPU");
}

Status GuardedBuffer::read(void* to, const Stream& stream) const {
  if (bytes_ == 0) return {};
  return driver_->check(driver_->MemcpyDtoHAsync(to, pointer(), bytes_, stream.handle()), "copying from the GPU");
}

Status GuardedBuffer::fill(uint8_t value, const Stream& stream) {
  if (bytes_ == 0) return {};
  return driver_->check(driver_->MemsetD8Async(pointer(), value, bytes_, stream.handle()), "filling GPU memory");
}

Status GuardedBuffer::check(const std::string& name, const Stream& stream) const {
  if (guard_bytes_ == 0) return {};
  std::vector<uint8_t> before(guard_bytes_), behind(guard_bytes_);
  const auto copy = [&](std::vector<uint8_t>& to, DevicePointer from) {
    return driver_->check(driver_->MemcpyDtoHAsync(to.data(), from, to.size(), stream.handle()), "copying a guard");
  };
  PLAIT_RETURN_IF_ERROR(copy(before, all_.pointer()));
  PLAIT_RETURN_IF_ERROR(copy(behind, pointer() + bytes_));
  PLAIT_RETURN_IF_ERROR(stream.wait());
  const auto changed = [](uint8_t byte) { return byte != kGuard; };
  if (const auto last = std::find_if(before.rbegin(), before.rend(), changed); last != before.rend())
    return internal(fmt::format("{} was written to, {} bytes before its beginning", name, last - before.rbegin() + 1));
  if (const auto first = std::find_if(behind.begin(), behind.end(), changed); first != behind.end())
    return internal(fmt::format("{} was written to, {} bytes behind its end", name, first - behind.begin()));
  return {};
}

}  // namespace plait::cuda::testing
