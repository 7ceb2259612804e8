#include "bench/chat_stream.h"

#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

namespace plait {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using Clock = std::chrono::steady_clock;

std::string request_body(const std::string& model, const std::string& prompt, int64_t tokens) {
  const boost::json::object body = {
      {"model", model},     {"messages", {{{"role", "user"}, {"content", prompt}}}},
      {"stream", true},     {"stream_options", {{"include_usage", true}}},
      {"temperature", 0},   {"max_tokens", tokens},
      {"ignore_eos", true},
  };
  return boost::json::serialize(body);
}

// Cuts a growing body into server-sent events.
class EventReader {
 public:
  // Calls `event` with the data of each event that is complete.
  template <typename OnEvent>
  void advance(const std::string& body, OnEvent&& event) {
    for (size_t end = body.find("\n\n", read_); end != std::string::npos; end = body.find("\n\n", read_)) {
      std::string_view data(body.data() + read_, end - read_);
      if (data.starts_with("data: ")) event(data.substr(6));
      read_ = end + 2;
    }
  }

 private:
  size_t read_ = 0;
};

Status note_event(std::string_view data, ChatStream& stream) {
  if (data == "[DONE]") return {};
  boost::system::error_code problem;
  const boost::json::value value = boost::json::parse({data.data(), data.size()}, problem);
  if (problem || !value.is_object()) return corrupt(fmt::format("the server streamed no JSON object: {}", data));
  const boost::json::object& event = value.as_object();
  if (event.contains("error")) return internal(fmt::format("the server streamed an error: {}", data));
  const auto* choices = event.if_contains("choices");
  if (choices && choices->is_array() && !choices->as_array().empty()) {
    stream.last_token = Clock::now();
    // The first event may only say whose turn it is.
    const auto* delta = choices->as_array()[0].as_object().if_contains("delta");
    const auto* content = delta ? delta->as_object().if_contains("content") : nullptr;
    const bool has_text = content && content->is_string() && !content->as_string().empty();
    if (has_text && stream.first_token == Clock::time_point()) stream.first_token = stream.last_token;
  }
  if (const auto* usage = event.if_contains("usage"); usage && usage->is_object()) {
    stream.prompt_tokens = usage->as_object().at("prompt_tokens").to_number<int64_t>();
    stream.completion_tokens = usage->as_object().at("completion_tokens").to_number<int64_t>();
  }
  return {};
}

}  // namespace

Result<ChatStream> stream_chat(uint16_t port, const std::string& model, const std::string& prompt, int64_t tokens) {
  asio::io_context io;
  asio::ip::tcp::socket socket(io);
  beast::error_code problem;
  socket.connect({asio::ip::address_v4::loopback(), port}, problem);
  if (problem) return unavailable(fmt::format("cannot connect to port {}: {}", port, problem.message()));

  http::request<http::string_body> request{http::verb::post, "/v1/chat/completions", 11};
  request.set(http::field::host, "127.0.0.1");
  request.set(http::field::content_type, "application/json");
  request.body() = request_body(model, prompt, tokens);
  request.prepare_payload();
  http::write(socket, request, problem);
  if (problem) return unavailable(fmt::format("cannot send a request: {}", problem.message()));

  beast::flat_buffer buffer;
  http::response_parser<http::string_body> parser;
  parser.body_limit(boost::none);
  http::read_header(socket, buffer, parser, problem);
  if (problem) return unavailable(fmt::format("no answer to a request: {}", problem.message()));
  const unsigned status = parser.get().result_int();

  ChatStream stream;
  EventReader events;
  while (!parser.is_done()) {
    http::read_some(socket, buffer, parser, problem);
    if (problem) return unavailable(fmt::format("the stream broke off: {}", problem.message()));
    if (status != 200) continue;
    Status noted;
    events.advance(parser.get().body(), [&](std::string_view data) {
      if (noted.has_value()) noted = note_event(data, stream);
    });
    PLAIT_RETURN_IF_ERROR(std::move(noted));
  }
  if (status == 503) return unavailable(parser.get().body());
  if (status != 200) return internal(fmt::format("the server answered {}: {}", status, parser.get().body()));
  return stream;
}

}  // namespace plait
