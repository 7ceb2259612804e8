#include "server/event_loop.h"

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>

namespace plait {

namespace asio = boost::asio;

struct EventLoop::State {
  explicit State(int helper_count) : helpers(helper_count) {}
  asio::io_context context{1};  // one thread runs it
  asio::executor_work_guard<asio::io_context::executor_type> work{context.get_executor()};
  asio::thread_pool helpers;
};

EventLoop::EventLoop(int helpers) : state_(std::make_unique<State>(helpers)) {}

EventLoop::~EventLoop() {
  state_->helpers.stop();
  state_->helpers.join();
}

void EventLoop::run() {
  state_->context.run();
}

void EventLoop::stop() {
  state_->context.stop();
}

void EventLoop::restart() {
  state_->context.restart();
}

void EventLoop::post(std::function<void()> task) {
  asio::post(state_->context, std::move(task));
}

void EventLoop::offload(std::function<void()> work, std::function<void()> done) {
  asio::post(state_->helpers, [this, work = std::move(work), done = std::move(done)]() mutable {
    work();
    post(std::move(done));
  });
}

asio::io_context& EventLoop::context() {
  return state_->context;
}

struct EventLoop::Timer::State {
  explicit State(asio::io_context& context) : timer(context) {}
  asio::steady_timer timer;
  uint64_t setting = 0;  // a callback that was already queued when the timer was set again must not run
};

EventLoop::Timer::Timer(EventLoop& loop) : state_(std::make_shared<State>(loop.context())) {}

EventLoop::Timer::~Timer() {
  cancel();
}

void EventLoop::Timer::set(std::chrono::milliseconds delay, std::function<void()> task) {
  state_->timer.expires_after(delay);
  const uint64_t setting = ++state_->setting;
  state_->timer.async_wait([weak = std::weak_ptr(state_), setting, task = std::move(task)](const auto& problem) {
    const auto state = weak.lock();
    if (!problem && state && state->setting == setting) task();
  });
}

void EventLoop::Timer::cancel() {
  ++state_->setting;
  state_->timer.cancel();
}

}  // namespace plait
