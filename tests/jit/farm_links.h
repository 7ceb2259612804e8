// Links between the builders of a farm: in memory for threads, over sockets for processes.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "jit/farm_link.h"

namespace plait::jit {

// Builders that are threads of this process. Every message is encoded and decoded on its way.
class MemoryHub {
 public:
  explicit MemoryHub(int builders) : mailboxes_(static_cast<size_t>(builders)) {}

  std::unique_ptr<FarmLink> link(int builder);
  // Nobody hears of it any more.
  void lose(int builder);
  // Bytes of kernels that have travelled.
  size_t entry_bytes() const;
  // Spoils entries on their way.
  void spoil_entries() { spoils_ = true; }

 private:
  class Link;
  struct Mailbox {
    bool gone = false;
    std::deque<std::pair<int, std::string>> messages;  // empty: the sender is gone
  };

  mutable std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<Mailbox> mailboxes_;
  size_t entry_bytes_ = 0;
  bool spoils_ = false;
};

// Every pair of builders has a pair of sockets; make it before the processes are forked, then take one's link in each.
class SocketMesh {
 public:
  explicit SocketMesh(int builders);
  ~SocketMesh();
  SocketMesh(SocketMesh&&) = default;
  // The others' ends are closed here.
  std::unique_ptr<FarmLink> take(int builder);

 private:
  class Link;
  std::vector<std::vector<int>> sockets_;  // [builder][other]
};

}  // namespace plait::jit
