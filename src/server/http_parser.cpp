#include "server/http_parser.h"

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>

namespace plait {
namespace {

namespace beast = boost::beast;
namespace http = beast::http;

ApiError refusal(int status, std::string message, std::string_view code) {
  ApiError error = bad_request(std::move(message), {}, code);
  error.status = status;
  return error;
}

}  // namespace

struct HttpParser::Impl {
  size_t max_header_bytes = 0;
  size_t max_body_bytes = 0;
  http::request_parser<http::string_body> parser;
  HttpRequest request;
  std::optional<ApiError> error;
  bool header_seen = false;
  bool complete = false;

  std::string field(http::field name) const {
    const auto value = parser.get()[name];
    return std::string(value.data(), value.size());
  }

  // "/path?query", or the form that is meant for proxies: "http://host/path?query".
  void take_target(std::string_view target) {
    if (const size_t scheme = target.find("://"); scheme != std::string_view::npos && !target.starts_with('/')) {
      const size_t slash = target.find('/', scheme + 3);
      target = slash == std::string_view::npos ? "/" : target.substr(slash);
    }
    const size_t question = target.find('?');
    request.path = target.substr(0, question);
    if (question != std::string_view::npos) request.query = target.substr(question + 1);
  }

  ApiError explain(const beast::error_code& problem) const {
    if (problem == http::error::header_limit) {
      return refusal(431, fmt::format("The request header is larger than {} bytes.", max_header_bytes),
                     "header_too_large");
    }
    if (problem == http::error::body_limit || problem == http::error::buffer_overflow) {
      return refusal(413, fmt::format("The request body is larger than {} bytes.", max_body_bytes), "body_too_large");
    }
    return bad_request("The request is not valid HTTP.", {}, "bad_http");
  }

  std::optional<ApiError> take_header() {
    const auto& head = parser.get();
    take_target({head.target().data(), head.target().size()});
    request.method.assign(head.method_string().data(), head.method_string().size());
    request.authorization = field(http::field::authorization);
    request.content_type = field(http::field::content_type);
    request.content_encoding = field(http::field::content_encoding);
    request.expects_continue = beast::iequals(head[http::field::expect], "100-continue");
    request.keep_alive = parser.keep_alive();
    request.has_body = !parser.is_done();
    request.http_1_0 = head.version() < 11;

    if (head.version() == 11 && head.count(http::field::host) != 1) {
      return bad_request("An HTTP/1.1 request needs exactly one Host header.", {}, "bad_http");
    }
    // Anything else would leave it open where the request ends.
    if (head.count(http::field::transfer_encoding) > 0 &&
        !beast::iequals(head[http::field::transfer_encoding], "chunked")) {
      return bad_request("The only transfer encoding that is read is chunked.", {}, "bad_http");
    }
    const auto length = parser.content_length();
    if (length && *length > max_body_bytes) return explain(http::error::body_limit);
    return std::nullopt;
  }
};

HttpParser::HttpParser(size_t max_header_bytes, size_t max_body_bytes) : impl_(std::make_unique<Impl>()) {
  impl_->max_header_bytes = max_header_bytes;
  impl_->max_body_bytes = max_body_bytes;
  impl_->parser.header_limit(static_cast<uint32_t>(std::min<size_t>(max_header_bytes, UINT32_MAX)));
  impl_->parser.body_limit(max_body_bytes);
}

HttpParser::~HttpParser() = default;

bool HttpParser::started() const {
  return impl_->parser.got_some();
}

bool HttpParser::complete() const {
  return impl_->complete;
}

HttpRequest& HttpParser::request() {
  return impl_->request;
}

const std::optional<ApiError>& HttpParser::error() const {
  return impl_->error;
}

HttpParser::State HttpParser::feed(std::string_view bytes, size_t& consumed) {
  consumed = 0;
  if (impl_->error) return State::kError;
  auto& parser = impl_->parser;
  // Empty lines before a request are to be ignored: some clients send one after a body.
  while (!parser.got_some() && bytes.substr(consumed).starts_with("\r\n")) consumed += 2;
  if (!parser.got_some() && bytes.substr(consumed) == "\r") return State::kNeedMore;
  while (!parser.is_done()) {
    beast::error_code problem;
    const size_t used =
        parser.put(boost::asio::const_buffer(bytes.data() + consumed, bytes.size() - consumed), problem);
    consumed += used;
    if (problem && problem != http::error::need_more) {
      impl_->error = impl_->explain(problem);
      return State::kError;
    }
    if (parser.is_header_done() && !impl_->header_seen) {
      impl_->header_seen = true;
      impl_->error = impl_->take_header();
      if (impl_->error) return State::kError;
      parser.eager(true);
      return State::kHeader;
    }
    if (problem == http::error::need_more || (used == 0 && !parser.is_done())) return State::kNeedMore;
  }
  impl_->complete = true;
  impl_->request.body = std::move(parser.get().body());
  return State::kComplete;
}

}  // namespace plait
