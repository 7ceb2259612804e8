// The link of a build farm between the hosts of one engine: every host sends to every other one.
//
// Owns a channel for each host, which only that one sends on, a thread that sends and one for each host that it hears.
// Failures of the world end it. For one build; then close().
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/host_channel.h"
#include "jit/farm_link.h"

namespace plait {

class KernelLink : public jit::FarmLink {
 public:
  // Every host opens one. kInvalid, as World::communicator.
  static Result<std::unique_ptr<KernelLink>> open(std::shared_ptr<comm::World> world);
  ~KernelLink() override;

  int builder() const override { return host_; }
  int builders() const override { return static_cast<int>(channels_.size()); }
  void send(int to, const jit::FarmMessage& message) override;
  Result<std::optional<jit::ReceivedMessage>> receive(std::chrono::milliseconds limit) override;

  // Nothing more will be sent. Returns when no host sends any more, or the world has failed.
  void close();

 private:
  KernelLink(std::shared_ptr<comm::World> world, std::vector<HostChannel> channels);
  void send_queue();
  void hear(int host);

  const std::shared_ptr<comm::World> world_;
  const int host_;
  std::vector<HostChannel> channels_;  // [hosts]

  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::deque<std::pair<int, std::string>> queue_;  // to be sent
  std::deque<jit::ReceivedMessage> heard_;
  std::optional<Error> failure_;
  bool closed_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace plait
