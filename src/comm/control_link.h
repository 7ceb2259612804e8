// The control connections after the rendezvous: how a failure reaches every process, and how a lost process is noticed.
//
// Node 0 has a connection with every other node and passes on what concerns all. One thread per process listens; it
// starts with the object and ends with it. leave() says goodbye and waits (bounded) until all processes leave, so that
// nobody closes a connection that carries another's last message.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "comm/failure.h"
#include "comm/rendezvous.h"
#include "comm/sockets.h"

namespace plait::comm {

class ControlLink {
 public:
  // `tick` is called about every 20 ms by the link's thread.
  ControlLink(Meeting meeting, Cancellation& cancellation, std::function<void()> tick);
  ~ControlLink();
  ControlLink(const ControlLink&) = delete;
  ControlLink& operator=(const ControlLink&) = delete;

  void leave();

 private:
  struct Peer {
    int node = 0;
    int socket = -1;
    FrameReader reader;
    bool said_goodbye = false;
    bool gone = false;
  };

  void run();
  void wait_for_events();
  void hear(Peer& peer);
  void handle(Peer& peer, const FrameReader::Message& message);
  void announce_failure();
  void say_goodbye();
  void send(Peer& peer, FrameType type, std::span<const uint8_t> payload);
  void lose(Peer& peer, const std::string& why);
  std::string describe(int node) const;

  Meeting meeting_;
  Cancellation& cancellation_;
  std::function<void()> tick_;
  std::vector<Peer> peers_;
  int wake_ = -1;  // an eventfd
  uint64_t watcher_ = 0;
  bool announced_ = false;
  bool goodbye_sent_ = false;
  int failure_from_ = -1;  // the node that told us of the failure
  std::atomic<bool> leaving_{false};
  std::thread thread_;
};

}  // namespace plait::comm
