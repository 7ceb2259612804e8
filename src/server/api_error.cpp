#include "server/api_error.h"

#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>

namespace plait {
namespace {

constexpr int kRetryAfterSeconds = 1;

boost::json::value text_or_null(const std::string& text) {
  return text.empty() ? boost::json::value(nullptr) : boost::json::value(text);
}

}  // namespace

void throw_exception_from_error(const ApiError& error, const boost::source_location& location) {
  throw std::logic_error(
      fmt::format("unhandled error at {}:{}: {}", location.file_name(), location.line(), error.message));
}

ApiError bad_request(std::string message, std::string_view param, std::string_view code) {
  return {.status = 400, .message = std::move(message), .param = std::string(param), .code = std::string(code)};
}

ApiError overloaded(std::string message) {
  return {.status = 503,
          .message = std::move(message),
          .type = "overloaded_error",
          .code = "queue_full",
          .retry_after_s = kRetryAfterSeconds};
}

ApiError not_ready(std::string message) {
  return {.status = 503,
          .message = std::move(message),
          .type = "service_unavailable_error",
          .code = "not_ready",
          .retry_after_s = kRetryAfterSeconds};
}

ApiError server_failure(std::string message) {
  return {.status = 500, .message = std::move(message), .type = "server_error", .code = "internal_error"};
}

ApiError to_api_error(const Error& error) {
  switch (error.kind) {
    case ErrorKind::kInvalid:
    case ErrorKind::kUnsupported:
      return bad_request(error.message);
    case ErrorKind::kNotFound:
      return {.status = 404, .message = error.message, .code = "not_found"};
    case ErrorKind::kExhausted:
      return overloaded(error.message);
    case ErrorKind::kDeadline:
      return {.status = 504, .message = error.message, .type = "timeout_error", .code = "timeout"};
    case ErrorKind::kCancelled:
    case ErrorKind::kUnavailable:
      return not_ready(error.message);
    case ErrorKind::kCorrupt:
    case ErrorKind::kIo:
    case ErrorKind::kInternal:
      break;
  }
  return server_failure(error.message);
}

std::string to_json(const ApiError& error) {
  return boost::json::serialize(boost::json::object{{"error",
                                                     {{"message", error.message},
                                                      {"type", error.type},
                                                      {"param", text_or_null(error.param)},
                                                      {"code", text_or_null(error.code)}}}});
}

}  // namespace plait
