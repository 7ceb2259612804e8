// The control connections after the rendezvous: how a failure reaches every process, and how a lost process is noticed.
//
// Node 0 has a connection with every other node and passes on what concerns all. One thread per process listens; it
// starts with the object and ends with it. leave() says goodbye and waits (bounded) until all processes leave, so that
// nobody closes a connection that carries another's last message. ask() may be called by any thread.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "comm/failure.h"
#include "comm/rendezvous.h"
#include "comm/sockets.h"

namespace plait::comm {

class ControlLink {
 public:
  // Members here (positions in the group) that have not begun call `call` of the group with this slot prefix.
  using LateMembers = std::function<std::vector<uint32_t>(uint32_t group, uint32_t call)>;

  // `tick` is called about every 20 ms by the link's thread, `late_members` when another node asks.
  ControlLink(Meeting meeting, Cancellation& cancellation, std::function<void()> tick, LateMembers late_members);
  ~ControlLink();
  ControlLink(const ControlLink&) = delete;
  ControlLink& operator=(const ControlLink&) = delete;

  // late_members of another node; empty: it does not answer.
  std::optional<std::vector<uint32_t>> ask(int node, uint32_t group, uint32_t call, std::chrono::milliseconds limit);

  // Any thread. What this node is doing, for node 0, in the place of what it said before; and, on node 0, what the
  // others said last. No more than kMaxNoteBytes.
  static constexpr size_t kMaxNoteBytes = 64 << 10;
  void note(std::string text);
  std::vector<NodeNote> notes();

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
  void send_questions();
  void send_note();
  void pass_on(uint32_t to, FrameType type, std::span<const uint8_t> payload);
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
  LateMembers late_members_;

  std::mutex mutex_;  // of what follows
  std::condition_variable answered_;
  uint32_t questions_asked_ = 0;
  std::vector<Question> questions_;                                   // to be sent
  std::optional<std::string> note_;                                   // to be sent
  std::map<int, NodeNote> notes_;                                     // by node
  std::map<uint32_t, std::optional<std::vector<uint32_t>>> answers_;  // by number, while somebody waits

  std::thread thread_;
};

}  // namespace plait::comm
