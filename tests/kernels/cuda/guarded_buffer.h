// Device memory with strips of NaN before and behind it, in any of the formats here: a kernel that reads them has wrong
// results, one that writes to them is found out.
#pragma once

#include <string>
#include <vector>

#include "kernels/cuda/device.h"

namespace plait::cuda::testing {

// Bytes of a strip: no kernel misses by more than a tile of rows. None under compute-sanitizer, which has to see where
// the memory ends.
inline constexpr size_t kGuardBytes = 64 << 10;
inline constexpr size_t kNoGuard = 0;

class GuardedBuffer {
 public:
  GuardedBuffer() = default;
  static Result<GuardedBuffer> make(const Device& device, const Stream& stream, size_t bytes, size_t guard_bytes);
  template <typename T>
  static Result<GuardedBuffer> of(const Device& device, const Stream& stream, const std::vector<T>& values,
                                  size_t guard_bytes) {
    PLAIT_ASSIGN_OR_RETURN(GuardedBuffer buffer, make(device, stream, values.size() * sizeof(T), guard_bytes));
    PLAIT_RETURN_IF_ERROR(buffer.write(values.data(), stream));
    return buffer;
  }

  DevicePointer pointer() const { return all_.pointer() + guard_bytes_; }
  size_t size_bytes() const { return bytes_; }
  Status write(const void* from, const Stream& stream);
  Status read(void* to, const Stream& stream) const;
  Status fill(uint8_t value, const Stream& stream);
  // Waits for the stream. kInternal: says which byte of which strip is not what it was; `name` is what the message
  // calls this buffer.
  Status check(const std::string& name, const Stream& stream) const;

 private:
  const Driver* driver_ = nullptr;
  DeviceBuffer all_;
  size_t bytes_ = 0, guard_bytes_ = 0;
};

}  // namespace plait::cuda::testing
