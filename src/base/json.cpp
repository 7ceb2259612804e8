#include "base/json.h"

#include <fstream>

#include <boost/json/array.hpp>
#include <boost/json/parse_options.hpp>
#include <boost/json/parser.hpp>

#include "base/units.h"

namespace plait::json {
namespace {

constexpr size_t kShownBytes = 40;  // of a string in a message

// The first bytes of `text`, cut between characters.
std::string_view shorten(std::string_view text) {
  if (text.size() <= kShownBytes) return text;
  size_t end = kShownBytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  return text.substr(0, end);
}

Error wrong(std::string_view expected, const boost::json::value& value) {
  return invalid(fmt::format("must be {}, not {}", expected, describe(value)));
}

std::string name_of(IntegerRange range) {
  constexpr IntegerRange kAny;
  if (range.min == kAny.min && range.max == kAny.max) return "an integer";
  if (range.max == kAny.max) return fmt::format("an integer of at least {}", range.min);
  return fmt::format("an integer from {} to {}", range.min, range.max);
}

std::string name_of(NumberRange range) {
  constexpr NumberRange kAny;
  if (range.min == kAny.min && range.max == kAny.max) return "a number";
  if (range.max == kAny.max) return fmt::format("a number of at least {}", range.min);
  return fmt::format("a number from {} to {}", range.min, range.max);
}

// The integer that `value` stands for, if it stands for one.
std::optional<int64_t> exact_integer(const boost::json::value& value) {
  if (const int64_t* integer = value.if_int64()) return *integer;
  const double* number = value.if_double();
  constexpr double kExact = 9007199254740992;  // 2^53: beyond it a double may have been another integer in the text
  if (number && std::fabs(*number) <= kExact && *number == std::trunc(*number)) return static_cast<int64_t>(*number);
  return std::nullopt;
}

// Runs `convert` on a field that is there, and names the field in its error.
template <typename Convert>
auto field(const Fields& fields, std::string_view key, Convert&& convert)
    -> Result<std::optional<std::decay_t<decltype(*convert(std::declval<const boost::json::value&>()))>>> {
  const boost::json::value* value = fields.find(key);
  if (!value) return std::nullopt;
  auto converted = convert(*value);
  if (converted.has_error()) return fields.error(key, converted.error().message);
  return std::optional(std::move(converted).value());
}

template <typename T>
Result<T> require(const Fields& fields, std::string_view key, Result<std::optional<T>> value) {
  if (value.has_error()) return std::move(value).error();
  if (!value->has_value()) return fields.error(key, "is missing");
  return std::move(**value);
}

}  // namespace

Result<boost::json::value> parse(std::string_view text, const Limits& limits) {
  if (text.size() > limits.bytes)
    return invalid(
        fmt::format("{} of JSON; at most {} are read", format_bytes(text.size()), format_bytes(limits.bytes)));
  boost::json::parse_options options;
  options.max_depth = limits.depth;
  boost::json::parser parser({}, options);
  boost::system::error_code error;
  const size_t parsed = parser.write(text.data(), text.size(), error);
  if (error == boost::json::error::too_deep)
    return invalid(fmt::format("JSON nested deeper than {} levels, at byte {}", limits.depth, parsed));
  if (error) return invalid(fmt::format("not valid JSON: {} at byte {}", error.message(), parsed));
  return parser.release();
}

Result<boost::json::object> parse_object(std::string_view text, const Limits& limits) {
  PLAIT_ASSIGN_OR_RETURN(boost::json::value value, parse(text, limits));
  if (!value.is_object()) return wrong("a JSON object", value);
  return std::move(value.as_object());
}

Result<boost::json::object> read_object_file(const std::filesystem::path& file, const Limits& limits) {
  std::error_code error;
  const auto status = std::filesystem::status(file, error);
  if (!std::filesystem::exists(status)) return not_found(fmt::format("{}: no such file", file.string()));
  // A pipe or a device would never end.
  if (!std::filesystem::is_regular_file(status)) return corrupt(fmt::format("{}: not a regular file", file.string()));
  std::ifstream stream(file, std::ios::binary);
  if (!stream) return io_error(fmt::format("{}: cannot be opened", file.string()), errno);
  std::string text;
  // One byte more than either, to notice a file that is too long or still growing.
  text.resize(std::min<uintmax_t>(std::filesystem::file_size(file, error), limits.bytes) + 1);
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (stream.bad()) return io_error(fmt::format("{}: cannot be read", file.string()), errno);
  text.resize(static_cast<size_t>(stream.gcount()));
  auto parsed = parse_object(text, limits);
  if (parsed.has_error()) return corrupt(fmt::format("{}: {}", file.string(), parsed.error().message));
  return parsed;
}

std::string describe(const boost::json::value& value) {
  switch (value.kind()) {
    case boost::json::kind::null:
      return "null";
    case boost::json::kind::bool_:
      return value.get_bool() ? "true" : "false";
    case boost::json::kind::int64:
      return fmt::format("{}", value.get_int64());
    case boost::json::kind::uint64:
      return fmt::format("{}", value.get_uint64());
    case boost::json::kind::double_:
      return fmt::format("{}", value.get_double());
    case boost::json::kind::string: {
      const std::string_view text(value.get_string());
      const std::string_view shown = shorten(text);
      return fmt::format("\"{}{}\"", shown, shown.size() < text.size() ? "..." : "");
    }
    case boost::json::kind::array:
      return fmt::format("an array of {}", value.get_array().size());
    case boost::json::kind::object:
      return "an object";
  }
  return "?";
}

Result<int64_t> to_integer(const boost::json::value& value, IntegerRange range) {
  const std::optional<int64_t> integer = exact_integer(value);
  if (!integer || *integer < range.min || *integer > range.max) return wrong(name_of(range), value);
  return *integer;
}

Result<double> to_number(const boost::json::value& value, NumberRange range) {
  boost::system::error_code error;
  const auto number = value.is_number() ? value.to_number<double>(error) : std::numeric_limits<double>::quiet_NaN();
  // 1e999 parses to infinity
  if (error || !std::isfinite(number) || number < range.min || number > range.max) return wrong(name_of(range), value);
  return number;
}

Result<bool> to_boolean(const boost::json::value& value) {
  if (const bool* boolean = value.if_bool()) return *boolean;
  return wrong("true or false", value);
}

Result<std::string> to_string(const boost::json::value& value) {
  if (const boost::json::string* text = value.if_string()) return std::string(*text);
  return wrong("a string", value);
}

const boost::json::value* Fields::find(std::string_view key) const {
  const boost::json::value* value = object_->if_contains(key);
  return value && !value->is_null() ? value : nullptr;
}

Result<std::optional<int64_t>> Fields::integer(std::string_view key, IntegerRange range) const {
  return field(*this, key, [&](const boost::json::value& value) { return to_integer(value, range); });
}

Result<std::optional<double>> Fields::number(std::string_view key, NumberRange range) const {
  return field(*this, key, [&](const boost::json::value& value) { return to_number(value, range); });
}

Result<std::optional<bool>> Fields::boolean(std::string_view key) const {
  return field(*this, key, to_boolean);
}

Result<std::optional<std::string>> Fields::string(std::string_view key) const {
  return field(*this, key, to_string);
}

Result<std::optional<Fields>> Fields::object(std::string_view key) const {
  return field(*this, key, [&](const boost::json::value& value) -> Result<Fields> {
    if (const boost::json::object* object = value.if_object()) return Fields(*object, kind_, path_of(key) + ".");
    return wrong("an object", value);
  });
}

Result<std::optional<std::vector<int64_t>>> Fields::integers(std::string_view key, IntegerRange range,
                                                             size_t max_count) const {
  return field(*this, key, [&](const boost::json::value& value) -> Result<std::vector<int64_t>> {
    const boost::json::array* array = value.if_array();
    if (!array) {
      PLAIT_ASSIGN_OR_RETURN(const int64_t integer, to_integer(value, range));
      return std::vector<int64_t>{integer};
    }
    if (array->size() > max_count)
      return invalid(fmt::format("has {} elements; at most {} are read", array->size(), max_count));
    std::vector<int64_t> integers;
    for (const boost::json::value& element : *array) {
      auto integer = to_integer(element, range);
      if (integer.has_error()) return std::move(integer).error().within(fmt::format("element {}", integers.size()));
      integers.push_back(*integer);
    }
    return integers;
  });
}

Result<int64_t> Fields::required_integer(std::string_view key, IntegerRange range) const {
  return require(*this, key, integer(key, range));
}

Result<double> Fields::required_number(std::string_view key, NumberRange range) const {
  return require(*this, key, number(key, range));
}

Result<std::string> Fields::required_string(std::string_view key) const {
  return require(*this, key, string(key));
}

std::string Fields::path_of(std::string_view key) const {
  return fmt::format("{}{}", path_, key);
}

Error Fields::error(std::string_view key, std::string_view what) const {
  return {kind_, fmt::format("{}: {}", path_of(key), what)};
}

}  // namespace plait::json
