#include "comm/sockets.h"

#include <cerrno>
#include <memory>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <poll.h>
#include <unistd.h>

#include "base/launch_region.h"

namespace plait::comm {
namespace {

using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

Result<Addresses> resolve(const HostPort& address, int flags) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  addrinfo* found = nullptr;
  const int code =
      getaddrinfo(address.host.empty() ? nullptr : address.host.c_str(), address.port.c_str(), &hints, &found);
  if (code != 0) return unavailable(fmt::format("cannot resolve {}: {}", address.host, gai_strerror(code)));
  return Addresses(found, &freeaddrinfo);
}

int milliseconds_until(Clock::time_point deadline) {
  if (deadline == kNoDeadline) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
}

Status wait_for(int socket, short events, Clock::time_point deadline, std::string_view what) {
  about_to_block("waiting for a socket");
  for (;;) {
    pollfd entry{socket, events, 0};
    const int ready = poll(&entry, 1, milliseconds_until(deadline));
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return io_error("poll", errno);
    if (ready == 0 && Clock::now() >= deadline) return deadline_exceeded(std::string(what));
  }
}

// A peer whose host has vanished is noticed within about 20 s even if nobody waits for it.
void prepare(int socket) {
  const auto set = [socket](int level, int option, int value) {
    setsockopt(socket, level, option, &value, sizeof(value));
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 5);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
}

std::string describe(const sockaddr_storage& address, socklen_t length, bool with_port) {
  char host[NI_MAXHOST] = "", port[NI_MAXSERV] = "";
  getnameinfo(reinterpret_cast<const sockaddr*>(&address), length, host, sizeof(host), port, sizeof(port),
              NI_NUMERICHOST | NI_NUMERICSERV);
  return with_port ? fmt::format("{}:{}", host, port) : std::string(host);
}

}  // namespace

Socket::~Socket() {
  if (descriptor_ >= 0) close(descriptor_);
}

Result<HostPort> parse_host_port(std::string_view text) {
  const size_t colon = text.rfind(':');
  HostPort result;
  if (colon != std::string_view::npos) {
    result.host = text.substr(0, colon);
    result.port = text.substr(colon + 1);
    if (result.host.size() >= 2 && result.host.front() == '[' && result.host.back() == ']')
      result.host = result.host.substr(1, result.host.size() - 2);
  }
  const bool is_number =
      !result.port.empty() && result.port.size() <= 5 &&
      std::all_of(result.port.begin(), result.port.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (result.host.empty() || !is_number || std::stoi(result.port) > 65535)
    return invalid(fmt::format("'{}' is not host:port", text));
  return result;
}

Result<Socket> listen_at(const HostPort& address) {
  PLAIT_ASSIGN_OR_RETURN(auto addresses, resolve(address, AI_PASSIVE));
  Error last = unavailable("no address");
  for (const addrinfo* a = addresses.get(); a != nullptr; a = a->ai_next) {
    Socket socket(::socket(a->ai_family, a->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, a->ai_protocol));
    const int on = 1;
    setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (socket.get() >= 0 && bind(socket.get(), a->ai_addr, a->ai_addrlen) == 0 && listen(socket.get(), 128) == 0)
      return socket;
    last = io_error(fmt::format("cannot listen at {}:{}", address.host, address.port), errno);
  }
  return last;
}

Result<Socket> connect_to(const HostPort& address, Clock::time_point deadline) {
  PLAIT_ASSIGN_OR_RETURN(auto addresses, resolve(address, 0));
  Error last = unavailable("no address");
  for (const addrinfo* a = addresses.get(); a != nullptr; a = a->ai_next) {
    Socket socket(::socket(a->ai_family, a->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, a->ai_protocol));
    if (socket.get() < 0) continue;
    int code = connect(socket.get(), a->ai_addr, a->ai_addrlen) == 0 ? 0 : errno;
    if (code == EINPROGRESS) {
      PLAIT_RETURN_IF_ERROR(wait_for(socket.get(), POLLOUT, deadline, "connecting took too long"));
      socklen_t length = sizeof(code);
      getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &code, &length);
    }
    if (code == 0) {
      prepare(socket.get());
      return socket;
    }
    last = io_error(fmt::format("cannot connect to {}:{}", address.host, address.port), code);
  }
  return last;
}

std::optional<Socket> accept_one(int listener) {
  const int descriptor = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (descriptor < 0) return std::nullopt;
  prepare(descriptor);
  return Socket(descriptor);
}

std::string local_address(int socket) {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  getsockname(socket, reinterpret_cast<sockaddr*>(&address), &length);
  return describe(address, length, false);
}

std::string peer_address(int socket) {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  getpeername(socket, reinterpret_cast<sockaddr*>(&address), &length);
  return describe(address, length, true);
}

Status send_all(int socket, std::span<const uint8_t> bytes, Clock::time_point deadline) {
  while (!bytes.empty()) {
    const ssize_t sent = send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent > 0) {
      bytes = bytes.subspan(static_cast<size_t>(sent));
    } else if (sent < 0 && errno == EAGAIN) {
      PLAIT_RETURN_IF_ERROR(wait_for(socket, POLLOUT, deadline, "the peer does not read"));
    } else if (sent < 0 && errno != EINTR) {
      return unavailable(io_error("the connection broke", errno).message);
    }
  }
  return {};
}

Status FrameReader::fill(int socket) {
  uint8_t buffer[16384];
  for (;;) {
    const ssize_t got = recv(socket, buffer, sizeof(buffer), 0);
    if (got > 0) {
      bytes_.insert(bytes_.end(), buffer, buffer + got);
      if (bytes_.size() > kMaxFrameBytes + sizeof(buffer)) return {};
    } else if (got == 0) {
      return unavailable("the peer closed the connection");
    } else if (errno == EAGAIN) {
      return {};
    } else if (errno != EINTR) {
      return unavailable(io_error("the connection broke", errno).message);
    }
  }
}

Result<std::optional<FrameReader::Message>> FrameReader::next() {
  PLAIT_ASSIGN_OR_RETURN(auto frame, first_frame(bytes_));
  if (!frame) return std::optional<Message>();
  std::optional<Message> message(Message{frame->type, {frame->payload.begin(), frame->payload.end()}});
  bytes_.erase(bytes_.begin(), bytes_.begin() + static_cast<ptrdiff_t>(frame->bytes));
  return message;
}

Result<FrameReader::Message> read_frame(int socket, Clock::time_point deadline) {
  std::vector<uint8_t> bytes;
  size_t wanted = kFrameHeaderBytes;
  for (;;) {
    PLAIT_ASSIGN_OR_RETURN(auto frame, first_frame(bytes));
    if (frame) return FrameReader::Message{frame->type, {frame->payload.begin(), frame->payload.end()}};
    if (bytes.size() == kFrameHeaderBytes)
      wanted += bytes[8] | size_t{bytes[9]} << 8 | size_t{bytes[10]} << 16;  // first_frame has checked the limit
    PLAIT_RETURN_IF_ERROR(wait_for(socket, POLLIN, deadline, "no answer in time"));
    const size_t have = bytes.size();
    bytes.resize(wanted);
    const ssize_t got = recv(socket, bytes.data() + have, wanted - have, 0);
    bytes.resize(have + static_cast<size_t>(std::max<ssize_t>(got, 0)));
    if (got == 0) return unavailable("the peer closed the connection");
    if (got < 0 && errno != EAGAIN && errno != EINTR)
      return unavailable(io_error("the connection broke", errno).message);
  }
}

}  // namespace plait::comm
