// JSON text as Python's json.dumps(ensure_ascii=False) writes it: what the models saw in training. Pure functions.
#pragma once

#include <string>

#include <boost/json/value.hpp>

namespace plait {

struct JsonLayout {
  const char* item_separator = ", ";
  const char* key_separator = ": ";
  int indent = 0;  // blanks a level, each item on its own line; 0: all on one line
};
inline constexpr JsonLayout kOneLineJson{};
inline constexpr JsonLayout kCompactJson{",", ":"};
inline constexpr JsonLayout kIndentedJson{",", ": ", 4};

std::string python_json(const boost::json::value& value, const JsonLayout& layout = kOneLineJson);

}  // namespace plait
