#include "comm/control_link.h"

#include <sys/eventfd.h>

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/launch_region.h"
#include "base/log.h"

namespace plait::comm {
namespace {

constexpr int kTickMs = 20;
constexpr auto kSendLimit =
    std::chrono::milliseconds(500);  // control frames are small; a stopped peer has room for them
constexpr auto kLeaveLimit = std::chrono::milliseconds(3000);

}  // namespace

ControlLink::ControlLink(Meeting meeting, Cancellation& cancellation, std::function<void()> tick,
                         LateMembers late_members)
    : meeting_(std::move(meeting)),
      cancellation_(cancellation),
      tick_(std::move(tick)),
      late_members_(std::move(late_members)) {
  for (size_t i = 0; i < meeting_.sockets.size(); ++i)
    if (meeting_.sockets[i] >= 0) peers_.push_back({static_cast<int>(i), meeting_.sockets[i], {}, false, false});
  wake_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  PLAIT_ASSERT(wake_ >= 0, "no descriptor left for an eventfd");
  watcher_ = cancellation_.watch([this] { eventfd_write(wake_, 1); });
  thread_ = std::thread([this] { run(); });
}

ControlLink::~ControlLink() {
  leave();
  cancellation_.unwatch(watcher_);
  close(wake_);
}

void ControlLink::leave() {
  if (!thread_.joinable()) return;
  leaving_.store(true);
  eventfd_write(wake_, 1);
  thread_.join();
}

std::string ControlLink::describe(int node) const {
  const Node& n = meeting_.nodes[static_cast<size_t>(node)];
  if (n.ranks == 1) return fmt::format("node {} ({}, rank {})", node, n.host, n.first_rank);
  return fmt::format("node {} ({}, ranks {} to {})", node, n.host, n.first_rank, n.first_rank + n.ranks - 1);
}

void ControlLink::run() {
  Clock::time_point leave_by = kNoDeadline;
  for (;;) {
    wait_for_events();
    tick_();
    send_questions();
    send_note();
    if (cancellation_.cancelled() && !announced_) announce_failure();
    if (!leaving_.load()) continue;
    if (leave_by == kNoDeadline) leave_by = Clock::now() + kLeaveLimit;
    if (!goodbye_sent_) say_goodbye();
    // A failed world waits for nobody.
    bool all_gone = true;
    for (const Peer& peer : peers_) all_gone &= peer.gone || peer.said_goodbye;
    if ((goodbye_sent_ && all_gone) || cancellation_.cancelled() || Clock::now() >= leave_by) break;
  }
  if (!goodbye_sent_) {  // a failed world, or one whose others did not leave in time
    for (Peer& peer : peers_) send(peer, FrameType::kGoodbye, {});
  }
}

void ControlLink::wait_for_events() {
  std::vector<pollfd> entries{{wake_, POLLIN, 0}, {meeting_.listener, POLLIN, 0}};
  for (const Peer& peer : peers_) entries.push_back({peer.gone ? -1 : peer.socket, POLLIN, 0});
  poll(entries.data(), entries.size(), kTickMs);
  if (entries[0].revents != 0) {
    eventfd_t count = 0;
    eventfd_read(wake_, &count);
  }
  for (size_t i = 0; i < peers_.size(); ++i)
    if (entries[i + 2].revents != 0) hear(peers_[i]);
  if (meeting_.listener < 0 || entries[1].revents == 0) return;
  while (auto late = accept_one(meeting_.listener)) {
    static constexpr std::string_view kReason =
        "all nodes of this engine are here already; if this one was restarted, restart the engine";
    const auto frame =
        make_frame(FrameType::kRefuse, {reinterpret_cast<const uint8_t*>(kReason.data()), kReason.size()});
    (void)send_all(late->get(), frame, Clock::now());
  }
}

void ControlLink::hear(Peer& peer) {
  const auto filled = peer.reader.fill(peer.socket);
  for (;;) {
    auto message = peer.reader.next();
    if (message.has_error()) return lose(peer, message.error().message);
    if (!message.value()) break;
    handle(peer, *message.value());
  }
  if (filled.has_error()) lose(peer, filled.error().message);
}

std::optional<std::vector<uint32_t>> ControlLink::ask(int node, uint32_t group, uint32_t call,
                                                      std::chrono::milliseconds limit) {
  about_to_block("asking another process");
  std::unique_lock lock(mutex_);
  const uint32_t number = ++questions_asked_;
  questions_.push_back({number, static_cast<uint32_t>(meeting_.node), static_cast<uint32_t>(node), group, call});
  auto& answer = answers_[number];
  eventfd_write(wake_, 1);
  answered_.wait_for(lock, limit, [&] { return answer.has_value(); });
  auto result = std::move(answer);
  answers_.erase(number);
  return result;
}

void ControlLink::send_questions() {
  std::vector<Question> questions;
  {
    std::lock_guard lock(mutex_);
    questions.swap(questions_);
  }
  for (const Question& question : questions) pass_on(question.to, FrameType::kQuestion, encode(question));
}

void ControlLink::note(std::string text) {
  PLAIT_ASSERT(text.size() <= kMaxNoteBytes, "a note is short");
  const std::lock_guard lock(mutex_);
  note_ = std::move(text);
  eventfd_write(wake_, 1);
}

std::vector<NodeNote> ControlLink::notes() {
  const std::lock_guard lock(mutex_);
  std::vector<NodeNote> notes;
  for (const auto& [node, note] : notes_) notes.push_back(note);
  return notes;
}

void ControlLink::send_note() {
  std::optional<std::string> note;
  {
    const std::lock_guard lock(mutex_);
    note.swap(note_);
  }
  if (!note || meeting_.node == 0) return;
  const std::span bytes(reinterpret_cast<const uint8_t*>(note->data()), note->size());
  for (Peer& peer : peers_) send(peer, FrameType::kNote, bytes);
}

// Node 0 reaches everybody, the others through node 0.
void ControlLink::pass_on(uint32_t to, FrameType type, std::span<const uint8_t> payload) {
  for (Peer& peer : peers_)
    if (meeting_.node != 0 || peer.node == static_cast<int>(to)) send(peer, type, payload);
}

void ControlLink::handle(Peer& peer, const FrameReader::Message& message) {
  const auto here = static_cast<uint32_t>(meeting_.node);
  if (message.type == FrameType::kQuestion) {
    auto question = decode_question(message.payload);
    if (question.has_error()) return lose(peer, question.error().message);
    const Question& q = question.value();
    if (q.to == here)
      pass_on(q.from, FrameType::kAnswer, encode(Answer{q.number, q.to, q.from, late_members_(q.group, q.call)}));
    else if (here == 0)
      pass_on(q.to, FrameType::kQuestion, message.payload);
    return;
  }
  if (message.type == FrameType::kAnswer) {
    auto answer = decode_answer(message.payload);
    if (answer.has_error()) return lose(peer, answer.error().message);
    if (answer.value().to != here) {
      if (here == 0) pass_on(answer.value().to, FrameType::kAnswer, message.payload);
      return;
    }
    std::lock_guard lock(mutex_);
    const auto waiting = answers_.find(answer.value().number);
    if (waiting != answers_.end()) waiting->second = std::move(answer.value().late_members);
    answered_.notify_all();
    return;
  }
  if (message.type == FrameType::kNote) {
    if (message.payload.size() > kMaxNoteBytes) return lose(peer, "it sent a note that is too long");
    const std::lock_guard lock(mutex_);
    notes_[peer.node] = {peer.node, std::string(message.payload.begin(), message.payload.end()), Clock::now()};
    return;
  }
  if (message.type == FrameType::kGoodbye) {
    peer.said_goodbye = true;
    return;
  }
  if (message.type != FrameType::kCancel) return;
  auto failure = decode_failure(message.payload);
  if (failure.has_error()) return lose(peer, failure.error().message);
  if (cancellation_.cancel(std::move(failure).value())) failure_from_ = peer.node;
}

void ControlLink::lose(Peer& peer, const std::string& why) {
  if (peer.gone) return;
  peer.gone = true;
  if (peer.said_goodbye || leaving_.load()) return;
  const Node& node = meeting_.nodes[static_cast<size_t>(peer.node)];
  cancellation_.cancel(
      {FailureKind::kPeerLost, node.ranks == 1 ? node.first_rank : -1, peer.node,
       fmt::format("{} is lost: {} (its process ended, or its host is gone)", describe(peer.node), why)});
}

void ControlLink::announce_failure() {
  announced_ = true;
  const Failure failure = cancellation_.failure();
  log::error("{}", failure.message);
  for (Peer& peer : peers_)
    if (peer.node != failure_from_) send(peer, FrameType::kCancel, encode(failure));
}

// Node 0 says goodbye when all others have; that ends the wait of all.
void ControlLink::say_goodbye() {
  if (meeting_.node == 0) {
    for (const Peer& peer : peers_)
      if (!peer.said_goodbye && !peer.gone) return;
  }
  goodbye_sent_ = true;
  for (Peer& peer : peers_) send(peer, FrameType::kGoodbye, {});
}

void ControlLink::send(Peer& peer, FrameType type, std::span<const uint8_t> payload) {
  if (peer.gone) return;
  auto sent = send_all(peer.socket, make_frame(type, payload), Clock::now() + kSendLimit);
  if (sent.has_error()) lose(peer, sent.error().message);
}

}  // namespace plait::comm
