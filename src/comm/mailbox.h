// Messages between two members of a group, in order, buffered: the sender copies and goes on.
//
// One Mailboxes per group and process. send and receive are called by the rank's own thread. A message to a member in
// this process waits in a ring of eight; one to a member elsewhere travels in the background, eight at a time.
#pragma once

#include <memory>
#include <vector>

#include "base/error.h"
#include "comm/call.h"

namespace plait::comm {

class Group;
struct Seat;

class Mailboxes {
 public:
  explicit Mailboxes(Group& group);
  ~Mailboxes();

  Status send(Seat& seat, const CallRecord& record, const void* data, int to);
  Status receive(Seat& seat, const CallRecord& record, void* data, int from);
  void cancel();  // wakes all waits

 private:
  struct Box;
  struct Outbox;
  Status send_local(Seat& seat, const CallRecord& record, const std::byte* data, int to);
  Status receive_local(Seat& seat, const CallRecord& record, std::byte* data, int from);
  Status send_remote(Seat& seat, const CallRecord& record, const std::byte* data, int to);
  Status receive_remote(Seat& seat, const CallRecord& record, std::byte* data, int from);
  Box& box(int from_local, int to_local);

  Group& group_;
  size_t local_members_;
  std::vector<std::unique_ptr<Box>> boxes_;        // [local sender, local receiver]
  std::vector<std::unique_ptr<Outbox>> outboxes_;  // [local sender, group size]
  std::vector<uint32_t> received_;                 // [local receiver, group size]: messages from elsewhere
};

}  // namespace plait::comm
