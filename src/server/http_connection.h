// One client connection: reads requests, hands them to the handlers, writes answers. Used by http_server.cpp alone.
//
// At most one read and one write are under way at any time. The coroutine run() waits for changes (bytes came, a write
// went out, the answer is complete, the client left) and looks at the state after each.
#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>

#include "server/answer_text.h"
#include "server/http.h"
#include "server/http_parser.h"

namespace plait {

// What all connections of a server share.
struct HttpServerContext {
  HttpLimits limits;
  HttpHandlers handlers;
  size_t connections = 0;
  size_t busy = 0;                     // connections with a request that is not answered and sent
  std::array<char, 64 << 10> scratch;  // a read's target until the connection takes it over
};

class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  using Clock = std::chrono::steady_clock;

  HttpConnection(boost::asio::ip::tcp::socket socket, std::shared_ptr<HttpServerContext> server);
  ~HttpConnection();

  boost::asio::awaitable<void> run();

  // For the exchange of the current request.
  void send_response(const HttpResponse& response, const HttpRequest& request);
  void begin_stream(std::string_view content_type, const HttpRequest& request);
  void send_chunk(const AnswerText& answer, bool chunked);
  void finish_exchange(bool chunked_end);
  bool usable() const { return !broken_; }

 private:
  boost::asio::awaitable<bool> serve_one();
  boost::asio::awaitable<bool> read_request(HttpParser& parser);
  boost::asio::awaitable<void> answer(HttpParser& parser);
  boost::asio::awaitable<void> flush();
  boost::asio::awaitable<void> linger();
  boost::asio::awaitable<void> changed(Clock::time_point deadline);
  void notify() { wake_.cancel(); }

  bool refuse(const HttpResponse& response, const HttpRequest& request);
  size_t read_ahead_bytes() const;
  void want_input();
  void take_input();
  void watch_half_closed(const HttpRequest& request);
  void queue(std::string_view text, std::span<const LongValue> long_values, bool chunked);
  void queue(std::string_view text, bool chunked);
  bool has_queued() const { return !queued_.empty() || !long_values_.empty(); }
  void take_queued();
  void start_write();
  void continue_write();
  void break_off();
  void append_head(const HttpResponse& response, std::string_view framing);

  boost::asio::ip::tcp::socket socket_;
  std::shared_ptr<HttpServerContext> server_;
  boost::asio::steady_timer wake_;
  boost::asio::steady_timer write_timer_;

  std::string input_;
  bool reading_ = false;
  bool input_ended_ = false;  // the client closed its side; it may still read
  bool lost_ = false;         // it is gone: nobody reads an answer
  bool watching_half_closed_ = false;

  // A value that is made while it is sent, and the text before it.
  struct QueuedValue {
    std::string before;
    std::shared_ptr<ByteSource> source;
    size_t left = 0;
    bool chunked = false;
  };
  std::deque<QueuedValue> long_values_;
  std::string queued_;   // to be sent after these, after
  std::string sending_;  // what is being sent, from
  size_t sent_ = 0;
  bool writing_ = false;
  bool broken_ = false;  // nothing can be sent any more

  bool keep_alive_ = true;
  bool head_sent_ = false;  // of the answer to the current request
  bool exchange_done_ = true;
};

}  // namespace plait
