// Forked processes of a test: each runs a function, says how it went by its exit status, and does not outlive the test.
#pragma once

#include <chrono>
#include <functional>
#include <sys/types.h>
#include <vector>

namespace plait::jit {

// Statuses of a child that ended.
inline constexpr int kWell = 0;
inline constexpr int kNotPermitted = 77;
inline constexpr int kKilled = -9;
inline constexpr int kHung = -1;

class Children {
 public:
  Children() = default;
  ~Children();  // kills what still runs
  Children(const Children&) = delete;
  Children& operator=(const Children&) = delete;

  // Forks: call while the process has one thread. The status is what `body` returns. Returns the child's number.
  int start(const std::function<int()>& body);
  pid_t pid(int child) const { return children_[static_cast<size_t>(child)].pid; }
  void kill(int child);
  // Its status, minus the number of the signal that ended it, or kHung.
  int wait(int child);
  bool all_well();

 private:
  struct Child {
    pid_t pid = -1;
    bool reaped = false;
    int status = 0;
  };
  std::vector<Child> children_;
};

// One child, and its status.
int in_child(const std::function<int()>& body);

}  // namespace plait::jit
