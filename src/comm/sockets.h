// TCP sockets for the control connections: everything has a deadline, nothing throws.
//
// Descriptors are non-blocking and close-on-exec. Plain functions; a descriptor is used by one thread at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "comm/control_frames.h"
#include "comm/signal.h"

namespace plait::comm {

// Closes its descriptor.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int descriptor) : descriptor_(descriptor) {}
  Socket(Socket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~Socket();

  int get() const { return descriptor_; }
  int release() { return std::exchange(descriptor_, -1); }

 private:
  int descriptor_ = -1;
};

struct HostPort {
  std::string host;
  std::string port;
};
Result<HostPort> parse_host_port(std::string_view text);  // "host:port", "[v6]:port"

Result<Socket> listen_at(const HostPort& address);
Result<Socket> connect_to(const HostPort& address, Clock::time_point deadline);
// Empty: nobody is waiting.
std::optional<Socket> accept_one(int listener);
std::string local_address(int socket);  // numeric, without the port
std::string peer_address(int socket);   // numeric, with the port

// kDeadline, or kUnavailable: the peer has closed.
Status send_all(int socket, std::span<const uint8_t> bytes, Clock::time_point deadline);

// Bytes of one connection that are not yet a whole frame.
class FrameReader {
 public:
  // Reads what is there. kUnavailable: the peer has closed.
  Status fill(int socket);
  // The next whole frame, copied; empty: there is none yet.
  struct Message {
    FrameType type = FrameType::kHello;
    std::vector<uint8_t> payload;
  };
  Result<std::optional<Message>> next();

 private:
  std::vector<uint8_t> bytes_;
};

// Waits for one whole frame; reads nothing beyond it.
Result<FrameReader::Message> read_frame(int socket, Clock::time_point deadline);

}  // namespace plait::comm
