#include "base/error.h"

#include <stdexcept>
#include <system_error>

namespace plait {

const char* name_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInvalid:
      return "invalid";
    case ErrorKind::kNotFound:
      return "not found";
    case ErrorKind::kUnsupported:
      return "unsupported";
    case ErrorKind::kCorrupt:
      return "corrupt";
    case ErrorKind::kExhausted:
      return "exhausted";
    case ErrorKind::kDeadline:
      return "deadline exceeded";
    case ErrorKind::kCancelled:
      return "cancelled";
    case ErrorKind::kUnavailable:
      return "unavailable";
    case ErrorKind::kIo:
      return "input/output";
    case ErrorKind::kInternal:
      return "internal";
  }
  return "?";
}

Error Error::within(std::string_view context) && {
  return {kind, fmt::format("{}: {}", context, message)};
}

Error invalid(std::string message) {
  return {ErrorKind::kInvalid, std::move(message)};
}
Error not_found(std::string message) {
  return {ErrorKind::kNotFound, std::move(message)};
}
Error unsupported(std::string message) {
  return {ErrorKind::kUnsupported, std::move(message)};
}
Error corrupt(std::string message) {
  return {ErrorKind::kCorrupt, std::move(message)};
}
Error exhausted(std::string message) {
  return {ErrorKind::kExhausted, std::move(message)};
}
Error deadline_exceeded(std::string message) {
  return {ErrorKind::kDeadline, std::move(message)};
}
Error cancelled(std::string message) {
  return {ErrorKind::kCancelled, std::move(message)};
}
Error unavailable(std::string message) {
  return {ErrorKind::kUnavailable, std::move(message)};
}
Error internal(std::string message) {
  return {ErrorKind::kInternal, std::move(message)};
}

Error io_error(std::string message, int errno_value) {
  return {ErrorKind::kIo, fmt::format("{}: {}", message, std::generic_category().message(errno_value))};
}

void throw_exception_from_error(const Error& error, const boost::source_location& location) {
  throw std::logic_error(
      fmt::format("unhandled error at {}:{}: {}", location.file_name(), location.line(), error.message));
}

}  // namespace plait
