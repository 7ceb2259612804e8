#include "comm/gloo_link.h"

#include <set>

#include <fmt/format.h>
#include <gloo/transport/context.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/unbound_buffer.h>

#include "base/log.h"

namespace plait::comm {
namespace {

// Gloo's own time-outs close the connections of all, so they never come: ours end a wait first.
constexpr std::chrono::milliseconds kForever = std::chrono::hours(24 * 365);
// How long a broken connection waits for its cause to arrive over the control connections.
constexpr auto kCauseLimit = std::chrono::milliseconds(500);

class GlooLink;

class GlooTransfer final : public Transfer {
 public:
  GlooTransfer(GlooLink& link, bool sending) : link_(link), sending_(sending) {}
  ~GlooTransfer() override;

  template <typename Start>
  void start(gloo::transport::Context& context, void* data, size_t bytes, Start&& start) {
    try {
      buffer_ = context.createUnboundBuffer(data, bytes);
      start(*buffer_);
    } catch (const std::exception& error) {
      why_ = error.what();
    }
  }

  End wait(Clock::time_point deadline) override;
  std::string why() const override { return why_; }

  void give_up() {
    if (sending_)
      buffer_->abortWaitSend();
    else
      buffer_->abortWaitRecv();
  }

  // Guarded by the link's mutex while it is in the link's list.
  Clock::time_point deadline = kNoDeadline;
  bool expired = false;

 private:
  End lost();

  GlooLink& link_;
  const bool sending_;
  bool done_ = false;
  std::string why_;
  std::unique_ptr<gloo::transport::UnboundBuffer> buffer_;
};

class GlooLink final : public TickingLink {
 public:
  GlooLink(Cancellation& cancellation, std::shared_ptr<gloo::transport::Context> context)
      : cancellation_(cancellation), context_(std::move(context)) {
    watcher_ = cancellation_.watch([this] {
      std::lock_guard lock(mutex_);
      for (GlooTransfer* transfer : waiting_) transfer->give_up();
    });
  }
  ~GlooLink() override { cancellation_.unwatch(watcher_); }

  std::unique_ptr<Transfer> send(int node, uint64_t slot, const void* data, size_t bytes) override {
    auto transfer = std::make_unique<GlooTransfer>(*this, true);
    transfer->start(*context_, const_cast<void*>(data), bytes,
                    [&](gloo::transport::UnboundBuffer& buffer) { buffer.send(node, slot); });
    return transfer;
  }

  std::unique_ptr<Transfer> receive(int node, uint64_t slot, void* data, size_t capacity_bytes) override {
    auto transfer = std::make_unique<GlooTransfer>(*this, false);
    transfer->start(*context_, data, capacity_bytes,
                    [&](gloo::transport::UnboundBuffer& buffer) { buffer.recv(node, slot); });
    return transfer;
  }

  void tick() override {
    std::lock_guard lock(mutex_);
    const auto now = Clock::now();
    for (GlooTransfer* transfer : waiting_) {
      if (transfer->expired || transfer->deadline > now) continue;
      transfer->expired = true;
      transfer->give_up();
    }
  }

  // False: the world is cancelled, do not wait.
  bool begin_wait(GlooTransfer& transfer, Clock::time_point deadline) {
    std::lock_guard lock(mutex_);
    if (cancellation_.cancelled()) return false;
    transfer.deadline = deadline;
    transfer.expired = false;
    waiting_.insert(&transfer);
    return true;
  }
  bool end_wait(GlooTransfer& transfer) {
    std::lock_guard lock(mutex_);
    waiting_.erase(&transfer);
    return transfer.expired;
  }
  Cancellation& cancellation() { return cancellation_; }

 private:
  Cancellation& cancellation_;
  std::shared_ptr<gloo::transport::Context> context_;
  uint64_t watcher_ = 0;
  std::mutex mutex_;
  std::set<GlooTransfer*> waiting_;
};

GlooTransfer::~GlooTransfer() = default;

Transfer::End GlooTransfer::lost() {
  // If somebody else's failure closed this connection, its reason is on its way.
  const auto until = Clock::now() + kCauseLimit;
  while (!link_.cancellation().cancelled() && Clock::now() < until)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  return link_.cancellation().cancelled() ? End::kCancelled : End::kLost;
}

Transfer::End GlooTransfer::wait(Clock::time_point deadline) {
  if (done_) return End::kDone;
  if (!why_.empty()) return lost();
  if (!link_.begin_wait(*this, deadline)) return End::kCancelled;
  try {
    done_ = sending_ ? buffer_->waitSend(nullptr, kForever) : buffer_->waitRecv(nullptr, kForever);
  } catch (const std::exception& error) {
    why_ = error.what();
  }
  const bool expired = link_.end_wait(*this);
  if (done_) return End::kDone;
  if (!why_.empty()) return lost();
  return expired ? End::kDeadline : End::kCancelled;
}

std::vector<uint8_t> as_blob(const std::vector<std::vector<char>>& addresses) {
  std::vector<uint8_t> blob;
  for (const auto& address : addresses) {
    blob.push_back(static_cast<uint8_t>(address.size() & 0xff));
    blob.push_back(static_cast<uint8_t>(address.size() >> 8));
    blob.insert(blob.end(), address.begin(), address.end());
  }
  return blob;
}

Result<std::vector<std::vector<char>>> from_blob(std::span<const uint8_t> blob, size_t count) {
  std::vector<std::vector<char>> addresses;
  while (blob.size() >= 2) {
    const size_t size = blob[0] | size_t{blob[1]} << 8;
    if (size > blob.size() - 2) break;
    addresses.emplace_back(blob.begin() + 2, blob.begin() + 2 + static_cast<ptrdiff_t>(size));
    blob = blob.subspan(2 + size);
  }
  if (!blob.empty() || addresses.size() != count) return corrupt("a node sent a broken list of addresses");
  return addresses;
}

}  // namespace

Result<std::unique_ptr<TickingLink>> make_gloo_link(Meeting& meeting, Cancellation& cancellation,
                                                    std::chrono::milliseconds limit) {
  const int nodes = static_cast<int>(meeting.nodes.size());
  try {
    auto device = gloo::transport::tcp::CreateDevice(meeting.nodes[static_cast<size_t>(meeting.node)].host.c_str());
    auto context = device->createContext(meeting.node, nodes);
    context->setTimeout(limit / 5);  // connecting may take five of them
    std::vector<std::vector<char>> addresses(static_cast<size_t>(nodes));
    for (int node = 0; node < nodes; ++node)
      if (node != meeting.node) addresses[static_cast<size_t>(node)] = context->createPair(node)->address().bytes();
    PLAIT_ASSIGN_OR_RETURN(const auto blobs, meeting.exchange(as_blob(addresses), limit));
    for (int node = 0; node < nodes; ++node) {
      if (node == meeting.node) continue;
      PLAIT_ASSIGN_OR_RETURN(const auto theirs,
                             from_blob(blobs[static_cast<size_t>(node)], static_cast<size_t>(nodes)));
      context->getPair(node)->connect(theirs[static_cast<size_t>(meeting.node)]);
    }
    return std::unique_ptr<TickingLink>(std::make_unique<GlooLink>(cancellation, std::move(context)));
  } catch (const std::exception& error) {
    return unavailable(fmt::format("cannot connect node {} with the others: {}", meeting.node, error.what()));
  }
}

}  // namespace plait::comm
