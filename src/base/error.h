// Errors as values, for every path that a user, a file, a peer process or the operating system can reach.
//
// An Error names what was wrong, where, and what to do about it, in one sentence that may be shown to a user.
// Assertions (assert.h) are for our own mistakes. Values only; safe from any thread.
#pragma once

#include <string>
#include <utility>

#include <boost/system/result.hpp>

namespace plait {

enum class ErrorKind {
  kInvalid,      // the caller's argument, request or configuration is wrong: HTTP 400
  kNotFound,     // a file, model or route does not exist: HTTP 404
  kUnsupported,  // valid, but this program does not do it
  kCorrupt,      // a file or message breaks its format
  kExhausted,    // memory, queue or disk is full: HTTP 503
  kDeadline,     // a wait ended without its event
  kCancelled,    // the caller, or a failing peer, gave up
  kUnavailable,  // a process or peer is not there (yet, or any more)
  kIo,           // the operating system refused
  kInternal,     // a broken invariant that was caught
};

const char* name_of(ErrorKind kind);

struct Error {
  ErrorKind kind = ErrorKind::kInternal;
  std::string message;

  // The same error, seen from further out: "<context>: <message>".
  Error within(std::string_view context) &&;
};

Error invalid(std::string message);
Error not_found(std::string message);
Error unsupported(std::string message);
Error corrupt(std::string message);
Error exhausted(std::string message);
Error deadline_exceeded(std::string message);
Error cancelled(std::string message);
Error unavailable(std::string message);
Error internal(std::string message);
// With the text of `errno_value` appended.
Error io_error(std::string message, int errno_value);

template <typename T>
using Result = boost::system::result<T, Error>;
using Status = Result<void>;

// result.value() on an error ends up here: an error that nobody looked at is a mistake of ours.
[[noreturn]] void throw_exception_from_error(const Error& error, const boost::source_location& location);

}  // namespace plait

// Leaves the function with the error of `expression` (a Status or Result), if it is one.
#define PLAIT_RETURN_IF_ERROR(expression)                             \
  do {                                                                \
    if (auto plait_status = (expression); plait_status.has_error()) { \
      return std::move(plait_status).error();                         \
    }                                                                 \
  } while (false)

// PLAIT_ASSIGN_OR_RETURN(auto value, expression): the value, or leaves the function with the error.
#define PLAIT_ASSIGN_OR_RETURN(declaration, expression) \
  PLAIT_ASSIGN_OR_RETURN_1(PLAIT_CONCAT(plait_result_, __LINE__), declaration, expression)
#define PLAIT_ASSIGN_OR_RETURN_1(result, declaration, expression) \
  auto result = (expression);                                     \
  if (result.has_error()) return std::move(result).error();       \
  declaration = std::move(result).value()
#define PLAIT_CONCAT(a, b) PLAIT_CONCAT_1(a, b)
#define PLAIT_CONCAT_1(a, b) a##b
