// Bytes of a connection to one HTTP/1.x request, with limits on everything a client could make endless.
//
// Feed it whatever arrived, in any cut; it stops at the end of the header once, so that a request can be refused before
// its body is read. One object per request; not thread safe.
#pragma once

#include <memory>
#include <optional>
#include <string_view>

#include "server/api_error.h"
#include "server/http.h"

namespace plait {

class HttpParser {
 public:
  enum class State {
    kNeedMore,
    kHeader,    // the header is complete: request() has everything but the body; go on with feed()
    kComplete,  // request() is complete; what is left of the bytes belongs to the next request
    kError,     // error(): answer it and close
  };

  HttpParser(size_t max_header_bytes, size_t max_body_bytes);
  ~HttpParser();

  // Takes as many of `bytes` as it can use; `consumed` of them must not be given again.
  State feed(std::string_view bytes, size_t& consumed);
  bool started() const;   // any byte of a request was seen
  bool complete() const;  // feed() said kComplete

  HttpRequest& request();
  const std::optional<ApiError>& error() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace plait
