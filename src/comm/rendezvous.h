// How the processes of one engine find each other: every node connects to node 0 at --dist-init-addr.
//
// Node 0 listens; the others try until it is there. A node is let in when it speaks the same protocol, proves (HMAC
// over nonces of both sides) that it knows the secret, and says the same about the number of nodes and every setting of
// `configuration`; else it is told what differs, and node 0 goes on waiting. Node 0 proves the same to it. Strangers
// (port scanners, HTTP clients) are dropped within seconds and disturb nobody. One thread; blocks up to `limit`.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace plait::comm {

struct RendezvousOptions {
  std::string address;  // of node 0, "host:port" or "[v6]:port"
  int nodes = 1;
  int node = 0;
  int ranks = 1;       // on this node
  std::string secret;  // never sent and never logged; empty is a secret like any other
  std::vector<std::pair<std::string, std::string>> configuration;  // e.g. {"--tp-size", "8"}: equal on all nodes
  std::chrono::milliseconds limit{600'000};
  std::chrono::milliseconds progress_interval{10'000};  // between log lines that name who is missing
};

struct Node {
  std::string host;  // its address as the others reach it
  int first_rank = 0;
  int ranks = 0;
};

// What a node said of itself.
struct NodeNote {
  int node = 0;
  std::string text;
  std::chrono::steady_clock::time_point received;
};

// Everybody is here. Owns its sockets.
class Meeting {
 public:
  Meeting() = default;
  Meeting(Meeting&& other) noexcept;
  Meeting& operator=(Meeting&& other) noexcept;
  ~Meeting();

  std::vector<Node> nodes;
  int node = 0;
  // Node 0: the connection with each node ([0] is -1). Others: the connection with node 0 at [0].
  std::vector<int> sockets;
  int listener = -1;  // of node 0

  // Every node gives a blob and gets all, in order of nodes. kDeadline, kUnavailable, kCorrupt.
  Result<std::vector<std::vector<uint8_t>>> exchange(const std::vector<uint8_t>& blob, std::chrono::milliseconds limit);
};

// kInvalid: refused, or impossible options; kDeadline: somebody did not come, the message says who.
Result<Meeting> meet(const RendezvousOptions& options);

}  // namespace plait::comm
