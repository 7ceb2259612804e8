#include "server/frame_socket.h"

#include <sys/socket.h>

#include <poll.h>

#include "base/launch_region.h"

namespace plait {
namespace {
Error other_side_gone() {
  return unavailable("the other process closed the connection");
}
}  // namespace

Status FrameSocket::send(const Result<std::string>& frame) {
  if (frame.has_error()) return frame.error();
  about_to_block("sending to the front end");
  const std::lock_guard lock(sending_);
  std::string_view rest = *frame;
  while (!rest.empty()) {
    const ssize_t bytes = ::send(descriptor_, rest.data(), rest.size(), MSG_NOSIGNAL);
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes < 0) return other_side_gone();
    rest.remove_prefix(static_cast<size_t>(bytes));
  }
  return {};
}

Result<std::optional<Frame>> FrameSocket::receive(int timeout_ms) {
  about_to_block("waiting for the front end");
  char buffer[64 << 10];
  while (true) {
    PLAIT_ASSIGN_OR_RETURN(std::optional<Frame> frame, frames_.next());
    if (frame) return frame;
    pollfd waiting{descriptor_, POLLIN, 0};
    const int ready = poll(&waiting, 1, timeout_ms);
    if (ready == 0) return std::optional<Frame>();
    if (ready < 0 && errno == EINTR) continue;
    const ssize_t bytes = recv(descriptor_, buffer, sizeof buffer, 0);
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes <= 0) return other_side_gone();
    frames_.append(std::string_view(buffer, static_cast<size_t>(bytes)));
  }
}

}  // namespace plait
