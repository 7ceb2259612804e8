#include "tests/comm/processes.h"

#include <arpa/inet.h>
#include <csignal>
#include <cstdio>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <thread>

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

namespace plait::comm::testing {

int free_port() {
  const int s = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  bind(s, reinterpret_cast<sockaddr*>(&address), sizeof(address));
  socklen_t length = sizeof(address);
  getsockname(s, reinterpret_cast<sockaddr*>(&address), &length);
  close(s);
  return ntohs(address.sin_port);
}

Processes::Processes(int count, const std::function<void(int, const Say&)>& body) {
  std::fflush(nullptr);
  for (int i = 0; i < count; ++i) {
    int ends[2];
    if (pipe(ends) != 0) std::abort();
    const pid_t parent = getpid();
    const pid_t pid = fork();
    if (pid == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != parent) _exit(1);
      close(ends[0]);
      body(i, [&](const std::string& text) {
        const std::string line = text + "\n";
        if (write(ends[1], line.data(), line.size()) < 0) _exit(1);
      });
      _exit(0);
    }
    close(ends[1]);
    children_.push_back({pid, ends[0], {}, false, 0});
  }
}

Processes::~Processes() {
  for (Child& child : children_) {
    if (!child.reaped) {
      kill(child.pid, SIGKILL);
      waitpid(child.pid, nullptr, 0);
    }
    close(child.output);
  }
}

void Processes::signal(int i, int number) {
  kill(pid(i), number);
}

std::string Processes::listen(int i, std::chrono::milliseconds limit, const std::string& until) {
  Child& child = children_[static_cast<size_t>(i)];
  const auto deadline = std::chrono::steady_clock::now() + limit;
  while (until.empty() || child.said.find(until) == std::string::npos) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    pollfd entry{child.output, POLLIN, 0};
    if (left.count() <= 0 || poll(&entry, 1, static_cast<int>(left.count())) <= 0) break;
    char buffer[4096];
    const ssize_t got = read(child.output, buffer, sizeof(buffer));
    if (got <= 0) break;
    child.said.append(buffer, static_cast<size_t>(got));
  }
  return child.said;
}

bool Processes::ended_well(int i, std::chrono::milliseconds limit) {
  Child& child = children_[static_cast<size_t>(i)];
  const auto deadline = std::chrono::steady_clock::now() + limit;
  while (!child.reaped) {
    if (waitpid(child.pid, &child.status, WNOHANG) == child.pid)
      child.reaped = true;
    else if (std::chrono::steady_clock::now() >= deadline)
      return false;
    else
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return WIFEXITED(child.status) && WEXITSTATUS(child.status) == 0;
}

RendezvousOptions options_for(int port, int nodes, int node, int ranks) {
  RendezvousOptions options;
  options.address = fmt::format("127.0.0.1:{}", port);
  options.nodes = nodes;
  options.node = node;
  options.ranks = ranks;
  options.secret = "a test's secret";
  options.limit = std::chrono::seconds(30);
  return options;
}

}  // namespace plait::comm::testing
