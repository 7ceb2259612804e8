// Sends the scheduler's outputs to the front end without holding up the next step.
//
// A step's tokens are a small frame, which goes out at once, on the scheduler's thread. What is long (routed experts of
// a cached prefix, logprobs of a prompt) goes out on a thread of its own, in frames of which the front end reads one
// without keeping others waiting; until it is out, later outputs queue behind it. Outputs keep their order.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "scheduler/request.h"
#include "scheduler/scheduler.h"
#include "server/frame_socket.h"

namespace plait {

class OutputSender {
 public:
  // `on_lost`: the front end is gone; called on the thread that noticed.
  OutputSender(FrameSocket& socket, std::function<void()> on_lost);
  ~OutputSender();  // after what is queued was sent

  // From one thread. Waits only while more is queued than the front end should lag behind.
  void send(std::vector<RequestOutput>&& outputs, const SchedulerLoad& load);

 private:
  struct Batch {
    std::vector<RequestOutput> outputs;
    SchedulerLoad load;
    size_t bytes = 0;
  };
  void work();
  void send_now(Batch&& batch);

  FrameSocket& socket_;
  const std::function<void()> on_lost_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Batch> queue_;  // the first stays in it while it is sent
  size_t queued_bytes_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

// Takes long rows of routed experts apart: outputs of which each has at most `most_bytes` of them, in an order in which
// a token comes with or after the rows before it.
std::vector<RequestOutput> in_pieces(std::vector<RequestOutput>&& outputs, size_t most_bytes);

}  // namespace plait
