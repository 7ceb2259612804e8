#include "tests/jit/farm_links.h"

#include <cstring>
#include <sys/socket.h>

#include <poll.h>
#include <unistd.h>

namespace plait::jit {
namespace {

using Kind = FarmMessage::Kind;

}  // namespace

class MemoryHub::Link : public FarmLink {
 public:
  Link(MemoryHub& hub, int builder) : hub_(hub), builder_(builder) {}

  int builder() const override { return builder_; }
  int builders() const override { return static_cast<int>(hub_.mailboxes_.size()); }
  void send(int to, const FarmMessage& message) override {
    std::string bytes = encode(message);
    const std::lock_guard lock(hub_.mutex_);
    if (hub_.mailboxes_[static_cast<size_t>(builder_)].gone) return;
    if (message.kind == Kind::kEntry) {
      hub_.entry_bytes_ += message.bytes.size();
      if (hub_.spoils_) {
        FarmMessage spoiled = message;
        spoiled.bytes[spoiled.bytes.size() / 2] ^= 1;
        bytes = encode(spoiled);
      }
    }
    hub_.mailboxes_[static_cast<size_t>(to)].messages.emplace_back(builder_, std::move(bytes));
    hub_.arrived_.notify_all();
  }
  Result<std::optional<ReceivedMessage>> receive(std::chrono::milliseconds limit) override {
    std::unique_lock lock(hub_.mutex_);
    Mailbox& own = hub_.mailboxes_[static_cast<size_t>(builder_)];
    hub_.arrived_.wait_for(lock, limit, [&] { return own.gone || !own.messages.empty(); });
    if (own.gone) return unavailable("this builder is lost");
    if (own.messages.empty()) return std::optional<ReceivedMessage>();
    const auto [from, bytes] = std::move(own.messages.front());
    own.messages.pop_front();
    if (bytes.empty()) return std::optional(ReceivedMessage{from, std::nullopt});
    PLAIT_ASSIGN_OR_RETURN(FarmMessage message, decode_farm_message(bytes));
    return std::optional(ReceivedMessage{from, std::move(message)});
  }

 private:
  MemoryHub& hub_;
  const int builder_;
};

std::unique_ptr<FarmLink> MemoryHub::link(int builder) {
  return std::make_unique<Link>(*this, builder);
}

void MemoryHub::lose(int builder) {
  const std::lock_guard lock(mutex_);
  for (Mailbox& mailbox : mailboxes_) mailbox.messages.emplace_back(builder, "");
  mailboxes_[static_cast<size_t>(builder)].gone = true;
  arrived_.notify_all();
}

size_t MemoryHub::entry_bytes() const {
  const std::lock_guard lock(mutex_);
  return entry_bytes_;
}

// Messages have a 64-bit length in front.
class SocketMesh::Link : public FarmLink {
 public:
  Link(int builder, std::vector<int> sockets)
      : builder_(builder), sockets_(std::move(sockets)), received_(sockets_.size()) {}
  ~Link() override {
    for (const int socket : sockets_)
      if (socket >= 0) ::close(socket);
  }

  int builder() const override { return builder_; }
  int builders() const override { return static_cast<int>(sockets_.size()); }
  void send(int to, const FarmMessage& message) override {
    const std::string bytes = encode(message);
    const uint64_t size = bytes.size();
    std::string frame(reinterpret_cast<const char*>(&size), sizeof size);
    frame += bytes;
    const std::lock_guard lock(mutex_);
    for (size_t sent = 0; sent < frame.size();) {
      const ssize_t part = ::send(sockets_[static_cast<size_t>(to)], &frame[sent], frame.size() - sent, MSG_NOSIGNAL);
      if (part <= 0) return;
      sent += static_cast<size_t>(part);
    }
  }
  Result<std::optional<ReceivedMessage>> receive(std::chrono::milliseconds limit) override {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (true) {
      for (size_t from = 0; from < received_.size(); ++from) {
        std::string& bytes = received_[from];
        uint64_t size = 0;
        if (bytes.size() < sizeof size) continue;
        std::memcpy(&size, bytes.data(), sizeof size);
        if (bytes.size() < sizeof size + size) continue;
        PLAIT_ASSIGN_OR_RETURN(FarmMessage message,
                               decode_farm_message(std::string_view(bytes).substr(sizeof size, size)));
        bytes.erase(0, sizeof size + size);
        return std::optional(ReceivedMessage{static_cast<int>(from), std::move(message)});
      }
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
      if (left.count() <= 0) return std::optional<ReceivedMessage>();
      std::vector<pollfd> entries;
      for (const int socket : sockets_) entries.push_back({socket, POLLIN, 0});
      ::poll(entries.data(), entries.size(), static_cast<int>(left.count()));
      for (size_t from = 0; from < entries.size(); ++from) {
        if (entries[from].revents == 0) continue;
        char part[65536];
        const ssize_t count = ::read(sockets_[from], part, sizeof part);
        if (count > 0) {
          received_[from].append(part, static_cast<size_t>(count));
          continue;
        }
        ::close(std::exchange(sockets_[from], -1));
        received_[from].clear();
        return std::optional(ReceivedMessage{static_cast<int>(from), std::nullopt});
      }
    }
  }

 private:
  const int builder_;
  std::vector<int> sockets_;
  std::vector<std::string> received_;
  std::mutex mutex_;
};

SocketMesh::SocketMesh(int builders)
    : sockets_(static_cast<size_t>(builders), std::vector<int>(static_cast<size_t>(builders), -1)) {
  for (size_t a = 0; a < sockets_.size(); ++a) {
    for (size_t b = a + 1; b < sockets_.size(); ++b) {
      int pair[2] = {-1, -1};
      if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) std::abort();
      sockets_[a][b] = pair[0];
      sockets_[b][a] = pair[1];
    }
  }
}

SocketMesh::~SocketMesh() {
  for (const auto& row : sockets_)
    for (const int socket : row)
      if (socket >= 0) ::close(socket);
}

std::unique_ptr<FarmLink> SocketMesh::take(int builder) {
  auto link = std::make_unique<Link>(builder, sockets_[static_cast<size_t>(builder)]);
  for (size_t row = 0; row < sockets_.size(); ++row) {
    for (int& socket : sockets_[row]) {
      if (socket >= 0 && static_cast<int>(row) != builder) ::close(socket);
      socket = -1;
    }
  }
  return link;
}

}  // namespace plait::jit
