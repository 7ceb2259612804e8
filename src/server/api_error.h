// Errors as HTTP clients see them: OpenAI's error object with a status. Values only.
//
// Texts are for the client: what was wrong with the request and what to do, never paths, pointers or internal names.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include <boost/system/result.hpp>

#include "base/error.h"

namespace plait {

struct ApiError {
  int status = 400;
  std::string message;
  std::string type = "invalid_request_error";
  std::string param;  // empty: null
  std::string code;   // empty: null
  std::optional<int> retry_after_s;
  std::string allow;  // 405: the methods that the route has
};

template <typename T>
using ApiResult = boost::system::result<T, ApiError>;
using ApiStatus = ApiResult<void>;
[[noreturn]] void throw_exception_from_error(const ApiError& error, const boost::source_location& location);

ApiError bad_request(std::string message, std::string_view param = {}, std::string_view code = {});
ApiError overloaded(std::string message);      // 503, with Retry-After
ApiError not_ready(std::string message);       // 503, with Retry-After
ApiError server_failure(std::string message);  // 500

// An error of the inner modules, as the client of the request sees it.
ApiError to_api_error(const Error& error);

// {"error": {"message", "type", "param", "code"}}
std::string to_json(const ApiError& error);

}  // namespace plait
