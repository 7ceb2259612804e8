// Whole frames over a blocking socket: the engine process' end of the connection. send() from any thread, receive()
// from one.
#pragma once

#include <mutex>
#include <optional>
#include <string>

#include "base/error.h"
#include "server/frames.h"

namespace plait {

class FrameSocket {
 public:
  explicit FrameSocket(int descriptor) : descriptor_(descriptor) {}

  // kUnavailable: the other side is gone.
  Status send(const Result<std::string>& frame);
  // The next frame; nothing if none came for `timeout_ms` (-1: wait for ever). kUnavailable: the other side is gone.
  Result<std::optional<Frame>> receive(int timeout_ms);

 private:
  int descriptor_;
  std::mutex sending_;
  FrameSplitter frames_;
};

}  // namespace plait
