#include "server/api.h"

#include "server/generation.h"
#include "server/native_api.h"
#include "server/openai_chat.h"
#include "server/openai_completions.h"
#include "server/request_fields.h"

namespace plait {
namespace {

// A body beyond this is parsed and tokenised on a helper thread: more than a millisecond of work.
constexpr size_t kInlineBodyBytes = 32 << 10;

constexpr unsigned kGet = 1;
constexpr unsigned kPost = 2;
constexpr unsigned kPut = 4;

struct MethodName {
  unsigned bit;
  std::string_view name;
};
constexpr MethodName kMethods[] = {{kGet, "GET"}, {kGet, "HEAD"}, {kPost, "POST"}, {kPut, "PUT"}};

unsigned bit_of(std::string_view method) {
  for (const MethodName& known : kMethods) {
    if (known.name == method) return known.bit;
  }
  return 0;
}

std::string allowed(unsigned methods) {
  std::string list;
  for (const MethodName& known : kMethods) {
    if ((methods & known.bit) != 0) list += fmt::format("{}, ", known.name);
  }
  return list + "OPTIONS";
}

// Takes as long for a wrong key as for the right one.
bool same_secret(std::string_view given, std::string_view expected) {
  unsigned difference = given.size() == expected.size() ? 0 : 1;
  for (size_t i = 0; i < given.size(); ++i) {
    difference |= static_cast<unsigned char>(given[i]) ^
                  static_cast<unsigned char>(expected[expected.empty() ? 0 : i % expected.size()]);
  }
  return difference == 0;
}

bool authorised(const HttpRequest& head, const std::string& api_key) {
  constexpr std::string_view kScheme = "Bearer ";
  std::string_view given = head.authorization;
  if (given.size() < kScheme.size()) return false;
  const bool bearer = std::equal(kScheme.begin(), kScheme.end(), given.begin(),
                                 [](char a, char b) { return std::tolower(a) == std::tolower(b); });
  given.remove_prefix(kScheme.size());
  return bearer && same_secret(given, api_key);
}

bool is_encoded(std::string_view content_encoding) {
  return !content_encoding.empty() && content_encoding != "identity";
}

bool is_json(std::string_view content_type) {
  content_type = content_type.substr(0, content_type.find(';'));
  while (!content_type.empty() && content_type.back() == ' ') content_type.remove_suffix(1);
  std::string lower(content_type);
  for (char& c : lower) c = static_cast<char>(std::tolower(c));
  return lower == "application/json";
}

HttpResponse refusal(int status, std::string message, std::string_view code, std::string allow = {}) {
  ApiError error = bad_request(std::move(message), {}, code);
  error.status = status;
  error.allow = std::move(allow);
  return to_response(error);
}

}  // namespace

struct Api::Route {
  std::string_view path;
  unsigned methods = kGet;
  void (Api::*handler)(const ExchangePointer&) = nullptr;
  bool open = false;       // needs no key
  bool prefix = false;     // everything below the path, too
  bool takes_body = true;  // if the method has one; else what comes is not looked at
};

const Api::Route Api::kRoutes[] = {
    {"/health", kGet, &Api::health, true},
    {"/health_generate", kGet, &Api::health_generate},
    {"/ping", kGet, &Api::ping},
    {"/version", kGet, &Api::version},
    {"/get_model_info", kGet, &Api::model_info},
    {"/model_info", kGet, &Api::model_info},
    {"/get_server_info", kGet, &Api::server_info},
    {"/server_info", kGet, &Api::server_info},
    {"/get_load", kGet, &Api::get_load},
    {"/metrics", kGet, &Api::metrics},
    {"/flush_cache", kGet | kPost, &Api::flush_cache, false, false, false},
    {"/abort_request", kPost, &Api::abort_request},
    {"/generate", kPost | kPut, &Api::generate},
    {"/v1/models", kGet, &Api::list_models},
    {"/v1/models/", kGet, &Api::one_model, false, true},
    {"/v1/completions", kPost, &Api::completions},
    {"/v1/chat/completions", kPost, &Api::chat_completions},
};

const Api::Route* Api::find_route(std::string_view path) {
  for (const Route& route : kRoutes) {
    if (path == route.path || (route.prefix && path.starts_with(route.path))) return &route;
  }
  return nullptr;
}

std::optional<HttpResponse> Api::check_head(const HttpRequest& head) const {
  const Route* route = find_route(head.path);
  const std::string& api_key = front_end_.options().api_key;
  const bool open = route != nullptr && route->open;
  if (!api_key.empty() && !open && !authorised(head, api_key)) {
    return refusal(401, "This server needs an API key: send it as 'Authorization: Bearer <key>'.", "invalid_api_key");
  }
  if (route == nullptr) return refusal(404, "There is no such route.", "unknown_route");
  if (head.method == "OPTIONS") return HttpResponse{.status = 204, .headers = {{"Allow", allowed(route->methods)}}};
  if ((bit_of(head.method) & route->methods) == 0) {
    return refusal(405, fmt::format("This route takes {} only.", allowed(route->methods)), "method_not_allowed",
                   allowed(route->methods));
  }
  const bool reads_body = route->takes_body && head.has_body && (bit_of(head.method) & (kPost | kPut)) != 0;
  if (reads_body && !is_json(head.content_type)) {
    return refusal(415, "Only bodies of the type application/json are read: set Content-Type.",
                   "unsupported_media_type");
  }
  if (reads_body && is_encoded(head.content_encoding)) {
    return refusal(415, "Only bodies without a Content-Encoding are read.", "unsupported_media_type");
  }
  return std::nullopt;
}

void Api::handle(ExchangePointer exchange) {
  const Route* route = find_route(exchange->request().path);
  (this->*route->handler)(exchange);
}

void Api::generate(const ExchangePointer& exchange) {
  generate_with(parse_generate, exchange);
}
void Api::completions(const ExchangePointer& exchange) {
  generate_with(parse_completions, exchange);
}
void Api::chat_completions(const ExchangePointer& exchange) {
  generate_with(parse_chat, exchange);
}

void Api::generate_with(Parser parser, const ExchangePointer& exchange) {
  if (const std::optional<ApiError> refusal = front_end_.refusal()) {
    exchange->respond(to_response(*refusal));
    return;
  }
  const auto arrived_at = ClientSequence::Clock::now();
  const auto parse = [&context = front_end_.context(), parser](std::string_view body) -> ApiResult<GenerationRequest> {
    PLAIT_ASSIGN_OR_RETURN(const boost::json::object object, parse_json_body(body));
    return parser(context, object);
  };
  const auto begin = [this, exchange, arrived_at](ApiResult<GenerationRequest> request) {
    // the server may have begun to shut down while a helper read a long body
    const std::optional<ApiError> refusal = front_end_.refusal();
    if (request.has_error()) {
      exchange->respond(to_response(request.error()));
    } else if (refusal) {
      exchange->respond(to_response(*refusal));
    } else {
      Generation::start(front_end_, exchange, std::move(request).value(), arrived_at);
    }
  };
  const std::string& body = exchange->request().body;
  if (body.size() <= kInlineBodyBytes) {
    begin(parse(body));
    return;
  }
  const auto result = std::make_shared<ApiResult<GenerationRequest>>(server_failure("unread"));
  front_end_.loop().offload([parse, &body, result] { *result = parse(body); },
                            [begin, result] { begin(std::move(*result)); });
}

}  // namespace plait
