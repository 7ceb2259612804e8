#include "kernels/context.h"

#include "base/assert.h"

namespace plait::kernels {

void* Workspace::get(int slot, size_t bytes) {
  PLAIT_ASSERT(slot >= 0 && slot < kSlots, "no such workspace slot");
  Buffer& buffer = buffers_[slot];
  // A quarter more than asked, so that a slowly growing batch does not map memory at every step.
  if (buffer.size_bytes() < bytes) {
    buffer = Buffer();
    buffer = Buffer(bytes + bytes / 4);
  }
  return buffer.data();
}

size_t Workspace::size_bytes() const {
  size_t bytes = 0;
  for (const Buffer& buffer : buffers_) bytes += buffer.size_bytes();
  return bytes;
}

}  // namespace plait::kernels
