// Forked processes that make up a world, for tests: each runs a function and reports text; none outlives its test.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <sys/types.h>
#include <vector>

#include "comm/rendezvous.h"

namespace plait::comm::testing {

int free_port();

class Processes {
 public:
  // Forks: call while the process has one thread. body(i, say) runs in process i; say(text) reports a line.
  using Say = std::function<void(const std::string&)>;
  Processes(int count, const std::function<void(int, const Say&)>& body);
  ~Processes();  // kills what still runs

  pid_t pid(int i) const { return children_[static_cast<size_t>(i)].pid; }
  void signal(int i, int number);
  // What process i has said until it ended, or until it said a line with `until` in it, or `limit`.
  std::string listen(int i, std::chrono::milliseconds limit, const std::string& until = "");
  // True if it ended by itself with status 0.
  bool ended_well(int i, std::chrono::milliseconds limit);

 private:
  struct Child {
    pid_t pid = -1;
    int output = -1;
    std::string said;
    bool reaped = false;
    int status = 0;
  };
  std::vector<Child> children_;
};

RendezvousOptions options_for(int port, int nodes, int node, int ranks);

}  // namespace plait::comm::testing
