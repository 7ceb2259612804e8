// Accepts connections and runs the HTTP/1.1 conversation on each: one coroutine per connection, no threads.
//
// Created, used and destroyed on the loop thread. Guarantees to handlers: one request of a connection at a time, in
// order; a client that leaves or stops reading is noticed while its request is worked on.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/error.h"
#include "server/event_loop.h"
#include "server/http.h"

namespace plait {

class HttpServer {
 public:
  // Binds and listens. kIo names the address and the flag to change.
  static Result<std::unique_ptr<HttpServer>> listen(EventLoop& loop, const std::string& host, uint16_t port,
                                                    HttpLimits limits, HttpHandlers handlers);
  ~HttpServer();

  uint16_t port() const;
  size_t connections() const;
  // Requests that are not yet answered, to the last byte.
  size_t unanswered() const;

 private:
  struct State;
  explicit HttpServer(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

}  // namespace plait
