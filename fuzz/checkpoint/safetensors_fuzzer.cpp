// The bytes of a safetensors file. Whatever is accepted must cover its data exactly, inside the file.
#include "base/assert.h"
#include "checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto entries = plait::parse_safetensors({reinterpret_cast<const std::byte*>(data), size});
  if (entries.has_error()) {
    PLAIT_ASSERT(!entries.error().message.empty(), "an error says what is wrong");
    return 0;
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, data, sizeof(header_bytes));
  uint64_t covered = sizeof(header_bytes) + header_bytes;
  for (const plait::SafetensorsEntry& entry : *entries) {
    PLAIT_ASSERT(entry.begin_bytes == covered, "no gap, no overlap");
    __int128 bytes = plait::size_of(entry.dtype);
    for (const int64_t dimension : entry.shape) {
      PLAIT_ASSERT(dimension >= 0, "no negative dimension");
      bytes *= dimension;
    }
    PLAIT_ASSERT(bytes == static_cast<__int128>(entry.end_bytes) - entry.begin_bytes, "shape and bytes agree");
    covered = entry.end_bytes;
  }
  PLAIT_ASSERT(covered == size, "nothing left over");
  return 0;
}
