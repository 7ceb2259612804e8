// The control connections' frames, as a stranger may send them.
#include <cstdint>
#include <span>

#include "base/assert.h"
#include "comm/control_frames.h"

using namespace plait::comm;

namespace {

void decode(std::span<const uint8_t> payload) {
  if (auto join = decode_join(payload); !join.has_error() && join.value().version == kControlVersion) {
    const auto again = encode(join.value());
    PLAIT_ASSERT(std::equal(again.begin(), again.end(), payload.begin(), payload.end()), "a join has one encoding");
  }
  (void)decode_hello(payload);
  (void)decode_table(payload);
  (void)decode_failure(payload);
  (void)decode_question(payload);
  (void)decode_answer(payload);
  (void)decode_blobs(payload);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::span<const uint8_t> bytes(data, size);
  decode(bytes);
  while (!bytes.empty()) {
    auto frame = first_frame(bytes);
    if (frame.has_error() || !frame.value()) break;
    decode(frame.value()->payload);
    bytes = bytes.subspan(frame.value()->bytes);
  }
  return 0;
}
