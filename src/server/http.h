// HTTP requests and responses as the handlers see them, free of any library.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/answer_text.h"
#include "server/api_error.h"

namespace plait {

struct HttpRequest {
  std::string method;
  std::string path;   // without the query, and without a scheme and host before it
  std::string query;  // without the question mark
  std::string authorization;
  std::string content_type;
  std::string content_encoding;
  std::string body;
  bool has_body = false;  // a body follows the header (maybe an empty one, in chunks)
  bool expects_continue = false;
  bool keep_alive = false;
  bool http_1_0 = false;
};

struct HttpResponse {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;
  std::vector<LongValue> long_values;  // in the body
};

HttpResponse to_response(const ApiError& error);

// One request and the way to answer it. Lives as long as a handler holds it, even when the client is gone: then what is
// written is dropped. Loop thread only.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual const HttpRequest& request() const = 0;

  // Exactly one of: respond() once; or begin_stream(), any number of write(), end_stream().
  virtual void respond(HttpResponse response) = 0;
  virtual void begin_stream(std::string_view content_type) = 0;
  virtual void write(const AnswerText& answer) = 0;
  virtual void end_stream() = 0;

  // Called once, never from within write(), if the client leaves, or does not read, before the answer is complete.
  virtual void on_disconnect(std::function<void()> callback) = 0;
  // The client has left.
  virtual bool abandoned() const = 0;
};

struct HttpLimits {
  size_t header_bytes = 64 << 10;
  size_t body_bytes = 32 << 20;
  // Bytes of an answer that a client has not read yet; a stream beyond is cut off. Long values are not in memory as
  // bytes and do not count.
  size_t unread_stream_bytes = 4 << 20;
  std::chrono::milliseconds read_timeout{30'000};   // from the first byte of a request to its last
  std::chrono::milliseconds idle_timeout{75'000};   // a kept connection without a request
  std::chrono::milliseconds write_timeout{60'000};  // a client that reads nothing for so long
  size_t connections = 65'536;
};

struct HttpHandlers {
  // After the header, before the body is read: an answer here ends the request (unknown route, no permission, ...).
  std::function<std::optional<HttpResponse>(const HttpRequest& head)> check_head;
  std::function<void(std::shared_ptr<Exchange> exchange)> handle;
};

}  // namespace plait
