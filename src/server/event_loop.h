// The front end's one thread of events, and a few helper threads for work that would hold it up.
//
// post() and offload() may be called from any thread; everything else, and every callback, runs on the thread in run().
// Hides Asio, which only the sources that move bytes include.
#pragma once

#include <chrono>
#include <functional>
#include <memory>

namespace boost::asio {
class io_context;
}

namespace plait {

class EventLoop {
 public:
  explicit EventLoop(int helpers);
  ~EventLoop();

  void run();      // until stop()
  void stop();     // from any thread
  void restart();  // run() may be called again after stop()

  void post(std::function<void()> task);
  // `work` on a helper thread, then `done` on the loop.
  void offload(std::function<void()> work, std::function<void()> done);

  // Calls back once, unless it is destroyed or set again before.
  class Timer {
   public:
    explicit Timer(EventLoop& loop);
    ~Timer();
    void set(std::chrono::milliseconds delay, std::function<void()> task);
    void cancel();

   private:
    struct State;
    std::shared_ptr<State> state_;
  };

  boost::asio::io_context& context();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace plait
