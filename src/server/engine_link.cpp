#include "server/engine_link.h"

#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <unistd.h>

#include "base/log.h"
#include "base/process.h"

namespace plait {
namespace {

namespace asio = boost::asio;
using asio::local::stream_protocol;

// One engine process and its socket. A new one is made for each start, so a late callback of an old one finds itself
// `ended`.
class Incarnation : public std::enable_shared_from_this<Incarnation> {
 public:
  Incarnation(asio::io_context& context, EngineLink::Events& events, ChildProcess process, int socket)
      : events_(events),
        process_(std::move(process)),
        socket_(context, stream_protocol(), socket),
        death_(context),
        input_(256 << 10, '\0') {
    if (process_.pidfd() >= 0) death_.assign(::dup(process_.pidfd()));
  }

  void watch() {
    if (death_.is_open()) {
      death_.async_wait(asio::posix::stream_descriptor::wait_read,
                        [self = shared_from_this()](const boost::system::error_code& problem) {
                          if (!problem) self->end("");
                        });
    }
    read();
  }

  pid_t pid() const { return process_.pid(); }
  bool running() const { return !ended_; }
  void kill() { process_.kill(); }
  void ask_for_activity() {
    if (!ended_) process_.send(SIGUSR1);
  }

  void send(const Result<std::string>& frame) {
    if (ended_) return;
    if (frame.has_error()) {
      log::error("{}", frame.error().message);
      return;
    }
    queued_ += *frame;
    write();
  }

  // Kills and reaps it, and lets go of the socket. Silent: nobody waits for this engine any more.
  void dispose() {
    if (std::exchange(ended_, true)) return;
    process_.kill();
    process_.wait();
    close();
  }

 private:
  void read() {
    socket_.async_read_some(asio::buffer(input_),
                            [self = shared_from_this()](const boost::system::error_code& problem, size_t bytes) {
                              if (self->ended_) return;
                              if (problem) {
                                self->end("");
                                return;
                              }
                              self->frames_.append(std::string_view(self->input_.data(), bytes));
                              if (Status handled = self->handle_frames(); handled.has_error()) {
                                self->end(handled.error().message);
                                return;
                              }
                              if (!self->ended_) self->read();
                            });
  }

  void write() {
    if (writing_ || ended_ || queued_.empty()) return;
    writing_ = true;
    sending_.clear();
    sending_.swap(queued_);
    sent_ = 0;
    continue_write();
  }

  void continue_write() {
    socket_.async_write_some(asio::buffer(sending_.data() + sent_, sending_.size() - sent_),
                             [self = shared_from_this()](const boost::system::error_code& problem, size_t bytes) {
                               if (self->ended_) return;
                               if (problem) {
                                 self->end("");
                                 return;
                               }
                               self->sent_ += bytes;
                               if (self->sent_ < self->sending_.size()) {
                                 self->continue_write();
                                 return;
                               }
                               self->writing_ = false;
                               self->write();
                             });
  }

  Status handle_frames() {
    while (!ended_) {
      PLAIT_ASSIGN_OR_RETURN(std::optional<Frame> frame, frames_.next());
      if (!frame) break;
      PLAIT_RETURN_IF_ERROR(handle(*frame));
    }
    return {};
  }

  template <typename Message, typename Callback>
  static Status deliver(Result<Message> message, Callback& callback) {
    if (message.has_error()) return std::move(message).error();
    callback(std::move(message).value());
    return {};
  }

  Status handle(const Frame& frame) {
    switch (frame.kind) {
      case FrameKind::kProgress:
        return deliver(decode_progress(frame.payload), events_.progress);
      case FrameKind::kReady:
        return deliver(decode_ready(frame.payload), events_.ready);
      case FrameKind::kFailed:
        return deliver(decode_failed(frame.payload), events_.failed);
      case FrameKind::kOutputs:
        return deliver(decode_outputs(frame.payload), events_.outputs);
      case FrameKind::kLoad:
        return deliver(decode_load(frame.payload), events_.load);
      case FrameKind::kFlushed:
        return deliver(decode_flushed(frame.payload), events_.flushed);
      case FrameKind::kEnded:
        events_.ended();
        return {};
      case FrameKind::kOptions:
      case FrameKind::kSubmit:
      case FrameKind::kAbort:
      case FrameKind::kFlushCache:
      case FrameKind::kShutdown:
        break;
    }
    return corrupt("the engine sent a message that only the front end sends");
  }

  // `why`: what we found wrong with it; empty if it ended by itself.
  void end(const std::string& why) {
    if (std::exchange(ended_, true)) return;
    process_.kill();
    const std::string how = process_.wait();
    close();
    events_.died(why.empty() ? how : why);
  }

  void close() {
    boost::system::error_code ignored;
    socket_.close(ignored);
    if (death_.is_open()) death_.close(ignored);
  }

  EngineLink::Events& events_;
  ChildProcess process_;
  stream_protocol::socket socket_;
  asio::posix::stream_descriptor death_;
  FrameSplitter frames_;
  std::string input_;
  std::string queued_, sending_;
  size_t sent_ = 0;
  bool writing_ = false;
  bool ended_ = false;
};

}  // namespace

struct EngineLink::State {
  EventLoop& loop;
  Events events;
  std::shared_ptr<Incarnation> engine;

  void send(const Result<std::string>& frame) {
    if (engine) engine->send(frame);
  }
};

EngineLink::EngineLink(EventLoop& loop, Events events)
    : state_(std::make_shared<State>(State{loop, std::move(events), nullptr})) {}

EngineLink::~EngineLink() {
  if (state_->engine) state_->engine->dispose();
}

Status EngineLink::start(const EngineProcessOptions& options) {
  PLAIT_ASSIGN_OR_RETURN(const SocketPair sockets, make_socket_pair());
  const std::string arguments[] = {"engine", std::to_string(kInheritedDescriptor)};
  auto process = spawn_self(arguments, sockets.child);
  ::close(sockets.child);
  if (process.has_error()) {
    ::close(sockets.parent);
    return std::move(process).error();
  }
  state_->engine =
      std::make_shared<Incarnation>(state_->loop.context(), state_->events, std::move(process).value(), sockets.parent);
  state_->engine->send(encode(options));
  state_->engine->watch();
  return {};
}

bool EngineLink::running() const {
  return state_->engine && state_->engine->running();
}

pid_t EngineLink::pid() const {
  return running() ? state_->engine->pid() : -1;
}

void EngineLink::send(const Request& request) {
  state_->send(encode(request));
}
void EngineLink::send(const AbortMessage& message) {
  state_->send(encode(message));
}
void EngineLink::send(const FlushCacheMessage& message) {
  state_->send(encode(message));
}
void EngineLink::send_shutdown() {
  state_->send(encode_shutdown());
}

void EngineLink::ask_for_activity() {
  if (state_->engine) state_->engine->ask_for_activity();
}

void EngineLink::kill() {
  if (state_->engine) state_->engine->kill();
}

}  // namespace plait
