#include "base/process.h"

#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

namespace plait {
namespace {

constexpr int kExecFailed = 127;

sigset_t question_signal() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  return set;
}

// Between fork and exec only async-signal-safe calls are allowed.
[[noreturn]] void become(char* const* argv, int inherited, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(kExecFailed);  // the parent ended before prctl
  if (inherited != kInheritedDescriptor) {
    if (dup2(inherited, kInheritedDescriptor) < 0) _exit(kExecFailed);
  } else {
    fcntl(inherited, F_SETFD, 0);
  }
  if (syscall(SYS_close_range, kInheritedDescriptor + 1, ~0U, 0) != 0) {
    for (int fd = kInheritedDescriptor + 1; fd < 65536; ++fd) close(fd);
  }
  const sigset_t blocked = question_signal();
  sigprocmask(SIG_SETMASK, &blocked, nullptr);
  execv("/proc/self/exe", argv);
  _exit(kExecFailed);
}

std::string describe_end(int status) {
  if (WIFSIGNALED(status)) {
    return fmt::format("was killed by signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)));
  }
  return fmt::format("exited with status {}", WEXITSTATUS(status));
}

}  // namespace

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), pidfd_(std::exchange(other.pidfd_, -1)) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(pidfd_, other.pidfd_);
  return *this;
}

ChildProcess::~ChildProcess() {
  if (running()) {
    kill();
    wait();
  }
}

void ChildProcess::send(int signal) {
  if (running()) ::kill(pid_, signal);
}

std::string ChildProcess::wait() {
  if (!running()) return "is not running";
  int status = 0;
  pid_t reaped = -1;
  do {
    reaped = waitpid(pid_, &status, 0);
  } while (reaped < 0 && errno == EINTR);
  if (pidfd_ >= 0) close(pidfd_);
  pid_ = pidfd_ = -1;
  return reaped < 0 ? "ended" : describe_end(status);
}

Result<ChildProcess> spawn_self(std::span<const std::string> arguments, int inherited) {
  std::string name = "plait";
  std::vector<char*> argv{name.data()};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);

  const pid_t parent = getpid();
  // The child has the mask of this thread from its first moment on.
  const sigset_t blocked = question_signal();
  sigset_t before;
  pthread_sigmask(SIG_BLOCK, &blocked, &before);
  const pid_t pid = fork();
  if (pid == 0) become(argv.data(), inherited, parent);
  const int why = errno;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (pid < 0) return io_error("cannot start a child process", why);

  ChildProcess child;
  child.pid_ = pid;
  child.pidfd_ = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  return child;
}

Result<SocketPair> make_socket_pair() {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
    return io_error("cannot make a socket pair", errno);
  return SocketPair{ends[0], ends[1]};
}

size_t raise_open_file_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 1024;
  if (limit.rlim_cur < limit.rlim_max) {
    rlimit raised = limit;
    raised.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &raised) == 0) limit = raised;
  }
  return limit.rlim_cur;
}

}  // namespace plait
