#include "tests/jit/children.h"

#include <csignal>
#include <cstdio>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <thread>

#include <unistd.h>

#include "tests/jit/compilers.h"

namespace plait::jit {

Children::~Children() {
  for (Child& child : children_) {
    if (child.reaped) continue;
    ::kill(child.pid, SIGKILL);
    ::waitpid(child.pid, nullptr, 0);
  }
}

int Children::start(const std::function<int()>& body) {
  std::fflush(nullptr);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    const int status = body();
    std::fflush(nullptr);
    _exit(status);
  }
  children_.push_back({pid, pid < 0, kHung});
  return static_cast<int>(children_.size()) - 1;
}

void Children::kill(int child) {
  ::kill(pid(child), SIGKILL);
}

int Children::wait(int number) {
  Child& child = children_[static_cast<size_t>(number)];
  const auto deadline = std::chrono::steady_clock::now() + kHang;
  int status = 0;
  while (!child.reaped) {
    if (::waitpid(child.pid, &status, WNOHANG) == child.pid) {
      child.reaped = true;
      child.status = WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
    } else if (std::chrono::steady_clock::now() >= deadline) {
      return kHung;
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }
  return child.status;
}

bool Children::all_well() {
  bool well = true;
  for (size_t i = 0; i < children_.size(); ++i) well = wait(static_cast<int>(i)) == kWell && well;
  return well;
}

int in_child(const std::function<int()>& body) {
  Children children;
  return children.wait(children.start(body));
}

}  // namespace plait::jit
