// What one process reads from the other: a stream of frames, and each payload as every kind of message.
#include "server/messages.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  (void)plait::decode_options(bytes);
  (void)plait::decode_submit(bytes);
  (void)plait::decode_outputs(bytes);
  (void)plait::decode_failed(bytes);
  (void)plait::decode_ready(bytes);
  (void)plait::decode_load(bytes);
  plait::FrameSplitter splitter;
  splitter.append(bytes);
  while (true) {
    auto frame = splitter.next();
    if (frame.has_error() || !*frame) break;
  }
  return 0;
}
