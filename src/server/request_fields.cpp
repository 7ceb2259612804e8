#include "server/request_fields.h"

#include "base/json.h"

namespace plait {
namespace {

using boost::json::array;
using boost::json::object;
using boost::json::value;

// 3.0 counts as 3, true and "3" do not.
std::optional<int64_t> as_integer(const value& element, IntegerRange range) {
  auto number = json::to_integer(element, {range.low, range.high});
  if (number.has_error()) return std::nullopt;
  return *number;
}

std::string describe(const NumberRange& range) {
  constexpr double kNoLimit = std::numeric_limits<double>::max();
  const std::string low = fmt::format("{} {}", range.above_low ? "above" : "of at least", range.low);
  return range.high == kNoLimit ? low : fmt::format("{} and at most {}", low, range.high);
}

}  // namespace

ApiResult<object> parse_json_body(std::string_view body) {
  auto parsed = json::parse_object(body, {.bytes = body.size(), .depth = kMaxJsonDepth});
  if (parsed.has_error()) {
    return bad_request(fmt::format("The request body is not a JSON object: {}.", parsed.error().message), {},
                       "invalid_json");
  }
  return std::move(parsed).value();
}

ApiResult<std::vector<int32_t>> as_token_ids(const array& elements, std::string_view path, int64_t vocab_size) {
  std::vector<int32_t> ids;
  ids.reserve(elements.size());
  for (const value& element : elements) {
    const std::optional<int64_t> id = as_integer(element, {0, vocab_size - 1});
    if (!id) {
      return bad_request(fmt::format("{}[{}] must be a token id from 0 to {}, not {}.", path, ids.size(),
                                     vocab_size - 1, json::describe(element)),
                         path);
    }
    ids.push_back(static_cast<int32_t>(*id));
  }
  return ids;
}

const boost::json::value* RequestFields::value(std::string_view name) const {
  const boost::json::value* found = object_.if_contains(name);
  return found == nullptr || found->is_null() ? nullptr : found;
}

std::string RequestFields::path_of(std::string_view name) const {
  return path_.empty() ? std::string(name) : fmt::format("{}.{}", path_, name);
}

void RequestFields::fail(std::string_view name, std::string_view problem) {
  if (error_) return;
  const std::string path = path_of(name);
  error_ = bad_request(fmt::format("{} {}.", path, problem), path);
}

void RequestFields::fail(ApiError error) {
  if (!error_) error_ = std::move(error);
}

void RequestFields::absorb(const RequestFields& part) {
  if (part.error_) fail(*part.error_);
}

ApiStatus RequestFields::status() const {
  if (error_) return *error_;
  return {};
}

std::optional<bool> RequestFields::boolean(std::string_view name) {
  const boost::json::value* found = value(name);
  if (found == nullptr) return std::nullopt;
  auto boolean = json::to_boolean(*found);
  if (!boolean.has_error()) return *boolean;
  fail(name, boolean.error().message);
  return std::nullopt;
}

std::optional<int64_t> RequestFields::integer(std::string_view name, IntegerRange range) {
  const boost::json::value* found = value(name);
  if (found == nullptr) return std::nullopt;
  auto number = json::to_integer(*found, {range.low, range.high});
  if (!number.has_error()) return *number;
  fail(name, number.error().message);
  return std::nullopt;
}

std::optional<double> RequestFields::number(std::string_view name, NumberRange range) {
  const boost::json::value* found = value(name);
  if (found == nullptr) return std::nullopt;
  if (found->is_number()) {
    const double number = found->to_number<double>();
    const bool above = range.above_low ? number > range.low : number >= range.low;
    if (std::isfinite(number) && above && number <= range.high) return number;
  }
  fail(name, fmt::format("must be a number {}, not {}", describe(range), json::describe(*found)));
  return std::nullopt;
}

std::optional<std::string> RequestFields::text(std::string_view name, size_t max_bytes) {
  const boost::json::value* found = value(name);
  if (found == nullptr) return std::nullopt;
  if (!found->is_string()) {
    fail(name, fmt::format("must be a string, not {}", json::describe(*found)));
    return std::nullopt;
  }
  const boost::json::string& text = found->get_string();
  if (text.size() > max_bytes) {
    fail(name, fmt::format("must not be longer than {} bytes, not {}", max_bytes, text.size()));
    return std::nullopt;
  }
  return std::string(text);
}

const boost::json::object* RequestFields::object(std::string_view name) {
  const boost::json::value* found = value(name);
  if (found == nullptr) return nullptr;
  if (!found->is_object()) fail(name, fmt::format("must be an object, not {}", json::describe(*found)));
  return found->if_object();
}

const boost::json::array* RequestFields::array(std::string_view name, size_t max_size) {
  const boost::json::value* found = value(name);
  if (found == nullptr) return nullptr;
  if (!found->is_array()) {
    fail(name, fmt::format("must be an array, not {}", json::describe(*found)));
    return nullptr;
  }
  if (found->get_array().size() > max_size) {
    fail(name, fmt::format("must not have more than {} elements, not {}", max_size, found->get_array().size()));
    return nullptr;
  }
  return found->if_array();
}

std::vector<std::string> RequestFields::texts(std::string_view name, size_t max_count, size_t max_bytes) {
  const boost::json::value* found = value(name);
  if (found == nullptr) return {};
  if (found->is_string()) {
    std::optional<std::string> single = text(name, max_bytes);
    return single ? std::vector<std::string>{std::move(*single)} : std::vector<std::string>{};
  }
  const boost::json::array* elements = array(name, max_count);
  if (elements == nullptr) return {};
  std::vector<std::string> texts;
  for (const boost::json::value& element : *elements) {
    if (!element.is_string() || element.get_string().size() > max_bytes) {
      fail(name, fmt::format("must be a string or an array of strings of at most {} bytes; element {} is not",
                             max_bytes, texts.size()));
      return {};
    }
    texts.emplace_back(element.get_string());
  }
  return texts;
}

std::vector<int32_t> RequestFields::token_ids(std::string_view name, size_t max_count, int64_t vocab_size) {
  const boost::json::array* elements = array(name, max_count);
  if (elements == nullptr) return {};
  auto ids = as_token_ids(*elements, path_of(name), vocab_size);
  if (ids.has_value()) return std::move(ids).value();
  fail(std::move(ids).error());
  return {};
}

void RequestFields::refuse(std::string_view name, std::string_view why) {
  const boost::json::value* found = value(name);
  if (found == nullptr || (found->is_bool() && !found->get_bool())) return;
  if (found->is_string() && found->get_string().empty()) return;
  if (found->is_array() && found->get_array().empty()) return;
  if (found->is_object() && found->get_object().empty()) return;
  if (error_) return;
  const std::string path = path_of(name);
  error_ = bad_request(fmt::format("{} is not supported: {}.", path, why), path, "unsupported_parameter");
}

}  // namespace plait
