// Adds to an error where it happened.
#pragma once

#include <string_view>

#include "base/error.h"

namespace plait {

// The same result; an error's message begins with "<where>: ".
template <typename T>
Result<T> located(std::string_view where, Result<T> result) {
  if (result.has_error()) return std::move(result).error().within(where);
  return result;
}

}  // namespace plait
