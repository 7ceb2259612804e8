#include "server/http_connection.h"

#include <ctime>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace plait {
namespace {

namespace asio = boost::asio;
using asio::awaitable;

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);

// Bytes that are read ahead of what the parser took, beyond a whole header.
constexpr size_t kReadAheadBytes = 64 << 10;
// A refused client may still be sending: reading on for a while lets it see the answer instead of a reset.
constexpr std::chrono::seconds kLingerTime{2};
constexpr size_t kLingerBytes = 64 << 20;
constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";

struct Reason {
  int status;
  std::string_view words;
};
constexpr Reason kReasons[] = {{200, "OK"},
                               {204, "No Content"},
                               {400, "Bad Request"},
                               {401, "Unauthorized"},
                               {404, "Not Found"},
                               {405, "Method Not Allowed"},
                               {408, "Request Timeout"},
                               {413, "Content Too Large"},
                               {415, "Unsupported Media Type"},
                               {431, "Request Header Fields Too Large"},
                               {500, "Internal Server Error"},
                               {503, "Service Unavailable"},
                               {504, "Gateway Timeout"}};

std::string_view reason_of(int status) {
  for (const Reason& reason : kReasons) {
    if (reason.status == status) return reason.words;
  }
  return "Unknown";
}

const std::string& date_header() {
  static std::time_t formatted = 0;
  static std::string text;
  const std::time_t now = std::time(nullptr);
  if (now != formatted) {
    std::tm utc{};
    gmtime_r(&now, &utc);
    char buffer[64];
    text.assign(buffer, std::strftime(buffer, sizeof buffer, "%a, %d %b %Y %H:%M:%S GMT", &utc));
    formatted = now;
  }
  return text;
}

// The handlers' side of one request. It keeps the connection alive, so answers always have somewhere to go.
class ConnectionExchange : public Exchange {
 public:
  ConnectionExchange(std::shared_ptr<HttpConnection> connection, HttpRequest request)
      : connection_(std::move(connection)), request_(std::move(request)) {}

  // A handler that drops a request without an answer made a mistake; the client must not wait for ever.
  ~ConnectionExchange() override {
    if (abandoned_) return;
    if (!answered_) {
      respond(to_response(server_failure("The request was dropped.")));
    } else if (streaming_) {
      connection_->finish_exchange(false);
    }
  }

  const HttpRequest& request() const override { return request_; }

  void respond(HttpResponse response) override {
    if (std::exchange(answered_, true)) return;
    connection_->send_response(response, request_);
    connection_->finish_exchange(false);
  }

  void begin_stream(std::string_view content_type) override {
    if (std::exchange(answered_, true)) return;
    streaming_ = true;
    connection_->begin_stream(content_type, request_);
  }

  void write(const AnswerText& answer) override {
    if (streaming_) connection_->send_chunk(answer, !request_.http_1_0);
  }

  void end_stream() override {
    if (std::exchange(streaming_, false)) connection_->finish_exchange(!request_.http_1_0);
  }

  void on_disconnect(std::function<void()> callback) override { lost_ = std::move(callback); }
  bool abandoned() const override { return abandoned_; }
  void lose() {
    abandoned_ = true;
    if (const auto callback = std::exchange(lost_, nullptr)) callback();
  }

 private:
  std::shared_ptr<HttpConnection> connection_;
  HttpRequest request_;
  std::function<void()> lost_;
  bool answered_ = false;
  bool streaming_ = false;
  bool abandoned_ = false;
};

// Counts the connection as busy while a request is worked on.
class Busy {
 public:
  explicit Busy(HttpServerContext& server) : server_(server) { ++server_.busy; }
  ~Busy() { --server_.busy; }

 private:
  HttpServerContext& server_;
};

}  // namespace

HttpResponse to_response(const ApiError& error) {
  HttpResponse response{.status = error.status, .body = to_json(error)};
  if (error.retry_after_s) response.headers.emplace_back("Retry-After", fmt::format("{}", *error.retry_after_s));
  if (!error.allow.empty()) response.headers.emplace_back("Allow", error.allow);
  if (error.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

HttpConnection::HttpConnection(asio::ip::tcp::socket socket, std::shared_ptr<HttpServerContext> server)
    : socket_(std::move(socket)),
      server_(std::move(server)),
      wake_(socket_.get_executor()),
      write_timer_(socket_.get_executor()) {
  ++server_->connections;
}

HttpConnection::~HttpConnection() {
  --server_->connections;
}

// ---- input

size_t HttpConnection::read_ahead_bytes() const {
  return server_->limits.header_bytes + kReadAheadBytes;
}

void HttpConnection::want_input() {
  if (reading_ || input_ended_ || broken_ || input_.size() >= read_ahead_bytes()) return;
  reading_ = true;
  socket_.async_wait(asio::ip::tcp::socket::wait_read,
                     [self = shared_from_this()](const boost::system::error_code& problem) {
                       self->reading_ = false;
                       if (problem) self->input_ended_ = self->lost_ = true;
                       if (!problem) self->take_input();
                       self->want_input();
                       self->notify();
                     });
}

void HttpConnection::take_input() {
  boost::system::error_code problem;
  const size_t bytes = socket_.read_some(asio::buffer(server_->scratch), problem);
  input_.append(server_->scratch.data(), bytes);
  if (!problem || problem == asio::error::would_block || problem == asio::error::try_again) return;
  input_ended_ = true;
  if (problem != asio::error::eof) lost_ = true;
}

// The end of the client's bytes looks the same whether it left or only has nothing more to say and waits for its
// answer. Sending something tells: who left answers with a reset. Events of a stream do; before them an interim
// response does, which every HTTP/1.1 client must skip. HTTP/1.0 has none: there, such a client counts as gone.
void HttpConnection::watch_half_closed(const HttpRequest& request) {
  if (std::exchange(watching_half_closed_, true)) return;
  if (!head_sent_ && request.http_1_0) {
    lost_ = true;
    return;
  }
  if (!head_sent_) {
    queued_ += kContinue;
    start_write();
  }
  socket_.async_wait(asio::ip::tcp::socket::wait_error, [self = shared_from_this()](const boost::system::error_code&) {
    self->lost_ = true;
    self->notify();
  });
}

// Until notify(), or the deadline.
awaitable<void> HttpConnection::changed(Clock::time_point deadline) {
  wake_.expires_at(deadline);
  co_await wake_.async_wait(kTuple);
}

// ---- output

void HttpConnection::append_head(const HttpResponse& response, std::string_view framing) {
  head_sent_ = true;
  if (input_ended_ && input_.empty()) keep_alive_ = false;
  fmt::format_to(std::back_inserter(queued_), "HTTP/1.1 {} {}\r\nDate: {}\r\nServer: plait\r\n", response.status,
                 reason_of(response.status), date_header());
  if (!response.content_type.empty() && response.status != 204) {
    fmt::format_to(std::back_inserter(queued_), "Content-Type: {}\r\n", response.content_type);
  }
  for (const auto& [name, value] : response.headers) {
    fmt::format_to(std::back_inserter(queued_), "{}: {}\r\n", name, value);
  }
  fmt::format_to(std::back_inserter(queued_), "{}Connection: {}\r\n\r\n", framing,
                 keep_alive_ ? "keep-alive" : "close");
}

void HttpConnection::send_response(const HttpResponse& response, const HttpRequest& request) {
  if (broken_) return;
  size_t bytes = response.body.size();
  for (const LongValue& value : response.long_values) bytes += value.source->size();
  append_head(response, response.status == 204 ? "" : fmt::format("Content-Length: {}\r\n", bytes));
  if (request.method != "HEAD" && response.status != 204) queue(response.body, response.long_values, false);
  start_write();
}

void HttpConnection::begin_stream(std::string_view content_type, const HttpRequest& request) {
  if (broken_) return;
  // Without chunks the end of the connection is the end of the answer.
  if (request.http_1_0) keep_alive_ = false;
  append_head({.content_type = std::string(content_type), .headers = {{"Cache-Control", "no-cache"}}},
              request.http_1_0 ? "" : "Transfer-Encoding: chunked\r\n");
}

void HttpConnection::queue(std::string_view text, bool chunked) {
  if (text.empty()) return;
  if (chunked) fmt::format_to(std::back_inserter(queued_), "{:x}\r\n", text.size());
  queued_ += text;
  if (chunked) queued_ += "\r\n";
}

void HttpConnection::queue(std::string_view text, std::span<const LongValue> long_values, bool chunked) {
  size_t begin = 0;
  for (const LongValue& value : long_values) {
    queue(text.substr(begin, value.at - begin), chunked);
    begin = value.at;
    long_values_.push_back({std::exchange(queued_, {}), value.source, value.source->size(), chunked});
  }
  queue(text.substr(begin), chunked);
}

void HttpConnection::send_chunk(const AnswerText& answer, bool chunked) {
  if (broken_ || answer.text.empty()) return;
  if (queued_.size() + sending_.size() - sent_ > server_->limits.unread_stream_bytes) {
    break_off();
    return;
  }
  queue(answer.text, answer.long_values, chunked);
  start_write();
}

void HttpConnection::finish_exchange(bool chunked_end) {
  if (chunked_end && !broken_) queued_ += "0\r\n\r\n";
  start_write();
  exchange_done_ = true;
  notify();
}

// What goes out next: all that is queued, or text up to a long value, or a piece of it.
void HttpConnection::take_queued() {
  sending_.clear();
  if (long_values_.empty()) {
    sending_.swap(queued_);
    return;
  }
  QueuedValue& value = long_values_.front();
  if (!value.before.empty()) {
    sending_.swap(value.before);
    return;
  }
  value.source->append_piece(sending_);
  value.left -= sending_.size();
  if (value.chunked) {
    sending_.insert(0, fmt::format("{:x}\r\n", sending_.size()));
    sending_ += "\r\n";
  }
  if (value.left == 0) long_values_.pop_front();
}

void HttpConnection::start_write() {
  if (writing_ || broken_ || !has_queued()) return;
  writing_ = true;
  sent_ = 0;
  take_queued();
  continue_write();
}

void HttpConnection::continue_write() {
  write_timer_.expires_after(server_->limits.write_timeout);
  write_timer_.async_wait([weak = weak_from_this()](const boost::system::error_code& problem) {
    if (const auto self = weak.lock(); self && !problem && self->writing_) self->break_off();
  });
  socket_.async_write_some(asio::buffer(sending_.data() + sent_, sending_.size() - sent_),
                           [self = shared_from_this()](const boost::system::error_code& problem, size_t bytes) {
                             self->sent_ += bytes;
                             if (problem) self->break_off();
                             if (!self->broken_ && self->sent_ < self->sending_.size()) {
                               self->continue_write();
                               return;
                             }
                             self->writing_ = false;
                             self->write_timer_.cancel();
                             if (self->has_queued()) {
                               self->start_write();
                             } else {
                               self->notify();
                             }
                           });
}

void HttpConnection::break_off() {
  broken_ = true;
  queued_ = {};
  long_values_.clear();
  boost::system::error_code ignored;
  socket_.close(ignored);
  notify();
}

// ---- the conversation

// Answers without the body of the request having been read. True if the connection can go on.
bool HttpConnection::refuse(const HttpResponse& response, const HttpRequest& request) {
  send_response(response, request);
  return keep_alive_;
}

awaitable<bool> HttpConnection::read_request(HttpParser& parser) {
  const HttpLimits& limits = server_->limits;
  Clock::time_point deadline = Clock::now() + limits.idle_timeout;
  bool timed = false;
  bool fresh = !input_.empty();
  while (true) {
    if (fresh && !std::exchange(timed, true)) deadline = Clock::now() + limits.read_timeout;
    while (fresh) {
      size_t consumed = 0;
      const HttpParser::State state = parser.feed(input_, consumed);
      input_.erase(0, consumed);
      if (state == HttpParser::State::kComplete) co_return true;
      if (state == HttpParser::State::kNeedMore) fresh = false;
      if (state == HttpParser::State::kNeedMore && input_.size() >= read_ahead_bytes()) {
        keep_alive_ = false;
        refuse(to_response(bad_request("A line of the request is too long.", {}, "bad_http")), parser.request());
        co_return false;
      }
      if (state == HttpParser::State::kError) {
        keep_alive_ = false;
        refuse(to_response(*parser.error()), parser.request());
        co_return false;
      }
      if (state != HttpParser::State::kHeader) continue;
      const HttpRequest& head = parser.request();
      keep_alive_ = head.keep_alive;
      if (const std::optional<HttpResponse> refusal = server_->handlers.check_head(head)) {
        keep_alive_ = keep_alive_ && !head.has_body;
        co_return refuse(*refusal, head);
      }
      if (head.expects_continue && head.has_body && input_.empty()) {
        queued_ += kContinue;
        start_write();
      }
    }
    if (input_ended_ || broken_) co_return false;
    const size_t before = input_.size();
    want_input();
    co_await changed(deadline);
    fresh = input_.size() > before;
    if (fresh || input_ended_ || broken_ || Clock::now() < deadline) continue;
    keep_alive_ = false;
    if (parser.started()) {
      ApiError error = bad_request("The request did not arrive in time.", {}, "request_timeout");
      error.status = 408;
      refuse(to_response(error), parser.request());
    }
    co_return false;
  }
}

awaitable<void> HttpConnection::answer(HttpParser& parser) {
  exchange_done_ = head_sent_ = false;
  const Busy busy(*server_);
  auto exchange = std::make_shared<ConnectionExchange>(shared_from_this(), std::move(parser.request()));
  const std::weak_ptr<ConnectionExchange> watched = exchange;
  // The handler owns the exchange from here on: if it drops it, the exchange answers for itself.
  server_->handlers.handle(std::move(exchange));
  while (!exchange_done_) {
    const auto current = watched.lock();
    if (input_ended_ && current) watch_half_closed(current->request());
    if (lost_ || broken_) {
      if (current) current->lose();
      break_off();
      co_return;
    }
    want_input();
    co_await changed(Clock::time_point::max());
  }
  co_await flush();
}

awaitable<void> HttpConnection::flush() {
  while (!broken_ && (writing_ || has_queued())) co_await changed(Clock::time_point::max());
}

awaitable<bool> HttpConnection::serve_one() {
  HttpParser parser(server_->limits.header_bytes, server_->limits.body_bytes);
  const bool complete = co_await read_request(parser);
  if (complete && parser.complete()) co_await answer(parser);
  co_return complete&& keep_alive_ && !broken_;
}

awaitable<void> HttpConnection::linger() {
  if (broken_ || input_ended_) co_return;
  boost::system::error_code ignored;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  const Clock::time_point deadline = Clock::now() + kLingerTime;
  size_t discarded = 0;
  while (!input_ended_ && discarded < kLingerBytes && Clock::now() < deadline) {
    discarded += input_.size();
    input_.clear();
    want_input();
    co_await changed(deadline);
  }
}

awaitable<void> HttpConnection::run() {
  const auto self = shared_from_this();
  want_input();
  while (co_await serve_one()) {
  }
  co_await linger();
  break_off();
}

}  // namespace plait
