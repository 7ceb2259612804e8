#include "engine/kernel_link.h"

namespace plait {
namespace {

constexpr std::string_view kMessageName = "message about kernels";

}  // namespace

Result<std::unique_ptr<KernelLink>> KernelLink::open(std::shared_ptr<comm::World> world) {
  std::vector<HostChannel> channels;
  for (size_t host = 0; host < world->nodes().size(); ++host) {
    PLAIT_ASSIGN_OR_RETURN(HostChannel channel, HostChannel::open(*world, fmt::format("kernels of host {}", host)));
    channels.push_back(std::move(channel));
  }
  return std::unique_ptr<KernelLink>(new KernelLink(std::move(world), std::move(channels)));
}

KernelLink::KernelLink(std::shared_ptr<comm::World> world, std::vector<HostChannel> channels)
    : world_(std::move(world)), host_(world_->this_node()), channels_(std::move(channels)) {
  threads_.emplace_back([this] { send_queue(); });
  for (int host = 0; host < builders(); ++host)
    if (host != host_) threads_.emplace_back([this, host] { hear(host); });
}

// Without close() something went wrong before: nobody may be left that says goodbye.
KernelLink::~KernelLink() {
  if (threads_.empty()) return;
  world_->cancel("the build of kernels was given up");
  close();
}

void KernelLink::send(int to, const jit::FarmMessage& message) {
  std::string bytes = encode(message);
  const std::lock_guard lock(mutex_);
  queue_.emplace_back(to, std::move(bytes));
  changed_.notify_all();
}

// A goodbye is an empty message.
void KernelLink::send_queue() {
  while (true) {
    std::pair<int, std::string> next;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return closed_ || failure_ || !queue_.empty(); });
      if (failure_) return;
      if (queue_.empty()) break;
      next = std::move(queue_.front());
      queue_.pop_front();
    }
    if (channels_[static_cast<size_t>(host_)].send(kMessageName, next.second, next.first).has_error()) return;
  }
  for (int host = 0; host < builders(); ++host)
    if (host != host_ && channels_[static_cast<size_t>(host_)].send(kMessageName, "", host).has_error()) return;
}

void KernelLink::hear(int host) {
  HostChannel& channel = channels_[static_cast<size_t>(host)];
  while (true) {
    Result<std::string> bytes = channel.receive(kMessageName, host, jit::kMaxFarmMessageBytes);
    if (bytes.has_value() && bytes->empty()) return;
    Result<jit::FarmMessage> message =
        bytes.has_error() ? Result<jit::FarmMessage>(std::move(bytes).error()) : jit::decode_farm_message(*bytes);
    const std::lock_guard lock(mutex_);
    changed_.notify_all();
    if (message.has_error()) {
      // The others wait for a goodbye that will not come.
      world_->cancel(message.error().message);
      if (!failure_) failure_ = std::move(message).error();
      return;
    }
    heard_.push_back({host, std::move(message).value()});
  }
}

Result<std::optional<jit::ReceivedMessage>> KernelLink::receive(std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, limit, [&] { return failure_ || !heard_.empty(); });
  if (!heard_.empty()) {
    std::optional<jit::ReceivedMessage> next = std::move(heard_.front());
    heard_.pop_front();
    return next;
  }
  if (failure_) return *failure_;
  return std::optional<jit::ReceivedMessage>();
}

void KernelLink::close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

}  // namespace plait
