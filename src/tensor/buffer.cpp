#include "tensor/buffer.h"

#include <sys/mman.h>

#include "base/assert.h"
#include "base/units.h"

namespace plait {
namespace {
constexpr size_t kHugePage = size_t{2} << 20;
size_t mapped_bytes(size_t bytes) {
  const size_t unit = bytes >= kHugePage ? kHugePage : size_t{4096};
  return (bytes + unit - 1) / unit * unit;
}
}  // namespace

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  // Anonymous pages are zero and are only backed when touched.
  data_ = mmap(nullptr, mapped_bytes(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  PLAIT_ASSERT(data_ != MAP_FAILED, fmt::format("out of memory: cannot map {}", format_bytes(bytes)));
  if (bytes >= kHugePage) madvise(data_, mapped_bytes(bytes), MADV_HUGEPAGE);
}

Buffer::~Buffer() {
  if (data_) munmap(data_, mapped_bytes(bytes_));
}

}  // namespace plait
