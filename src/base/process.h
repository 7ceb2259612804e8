// Child processes that cannot outlive their parent, and one look at how they ended.
//
// A ChildProcess owns the process it started: destroying it kills and reaps a child that still runs. spawn_self must be
// called on a thread that lives as long as the process (the main thread): the kernel kills the child when the thread
// that made it ends.
#pragma once

#include <span>
#include <string>
#include <sys/types.h>

#include <signal.h>

#include "base/error.h"

namespace plait {

class ChildProcess {
 public:
  ChildProcess() = default;
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ~ChildProcess();

  pid_t pid() const { return pid_; }
  bool running() const { return pid_ > 0; }
  // Readable once the child has ended; -1 where the kernel has no pidfds.
  int pidfd() const { return pidfd_; }

  void send(int signal);  // nothing if it does not run
  void kill() { send(SIGKILL); }
  // Reaps the child, waiting for its end: call after kill(), or when pidfd is readable. "exited with status 3", "was
  // killed by signal 9 (Killed)".
  std::string wait();

 private:
  friend Result<ChildProcess> spawn_self(std::span<const std::string>, int);
  pid_t pid_ = -1;
  int pidfd_ = -1;
};

// Descriptor number under which a child finds the one it inherits.
inline constexpr int kInheritedDescriptor = 3;

// Starts this program again with `arguments`. SIGUSR1 is blocked in the child until it asks for it: one that comes too
// early waits, and does not end it. The child gets standard input, output and error, `inherited` as
// descriptor kInheritedDescriptor, and nothing else; SIGKILL when this process ends, however it ends.
Result<ChildProcess> spawn_self(std::span<const std::string> arguments, int inherited);

// A connected pair of close-on-exec stream sockets.
struct SocketPair {
  int parent = -1;
  int child = -1;
};
Result<SocketPair> make_socket_pair();

// Raises the soft limit of open files to the hard one; returns the limit that holds now.
size_t raise_open_file_limit();

}  // namespace plait
