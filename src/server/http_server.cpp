#include "server/http_server.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "base/log.h"
#include "server/http_connection.h"

namespace plait {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;

// Per connection; larger buffers would only hide from us that a client does not read.
constexpr int kSendBufferBytes = 256 << 10;
// Out of descriptors: give connections time to end.
constexpr std::chrono::milliseconds kAcceptRetry{100};

void configure(tcp::socket& socket) {
  boost::system::error_code ignored;
  socket.set_option(tcp::no_delay(true), ignored);
  socket.set_option(tcp::socket::send_buffer_size(kSendBufferBytes), ignored);
  socket.non_blocking(true, ignored);
}

asio::awaitable<void> accept_connections(tcp::acceptor& acceptor, std::shared_ptr<HttpServerContext> context) {
  asio::steady_timer pause(acceptor.get_executor());
  while (acceptor.is_open()) {
    auto [problem, socket] = co_await acceptor.async_accept(asio::as_tuple(asio::use_awaitable));
    if (problem == asio::error::operation_aborted) co_return;
    if (problem || context->connections >= context->limits.connections) {
      log::warning("a connection was not accepted: {}", problem ? problem.message() : "too many connections");
      pause.expires_after(kAcceptRetry);
      co_await pause.async_wait(asio::as_tuple(asio::use_awaitable));
      continue;
    }
    configure(socket);
    auto connection = std::make_shared<HttpConnection>(std::move(socket), context);
    asio::co_spawn(acceptor.get_executor(), connection->run(), [connection](const std::exception_ptr& problem) {
      if (!problem) return;
      try {
        std::rethrow_exception(problem);
      } catch (const std::exception& exception) {
        log::error("a connection was ended by an exception: {}", exception.what());
      }
    });
  }
}

}  // namespace

struct HttpServer::State {
  explicit State(asio::io_context& context) : acceptor(context) {}
  tcp::acceptor acceptor;
  std::shared_ptr<HttpServerContext> context = std::make_shared<HttpServerContext>();
};

HttpServer::HttpServer(std::shared_ptr<State> state) : state_(std::move(state)) {}

HttpServer::~HttpServer() {
  boost::system::error_code ignored;
  state_->acceptor.close(ignored);
}

Result<std::unique_ptr<HttpServer>> HttpServer::listen(EventLoop& loop, const std::string& host, uint16_t port,
                                                       HttpLimits limits, HttpHandlers handlers) {
  boost::system::error_code problem;
  tcp::resolver resolver(loop.context());
  const auto endpoints = resolver.resolve(host, std::to_string(port), tcp::resolver::passive, problem);
  if (problem || endpoints.empty()) {
    return invalid(fmt::format("--host {} is not an address of this machine: {}", host, problem.message()));
  }
  const tcp::endpoint endpoint = endpoints.begin()->endpoint();

  auto state = std::make_shared<State>(loop.context());
  state->context->limits = limits;
  state->context->handlers = std::move(handlers);
  tcp::acceptor& acceptor = state->acceptor;
  acceptor.open(endpoint.protocol(), problem);
  if (!problem) acceptor.set_option(tcp::acceptor::reuse_address(true), problem);
  if (!problem) acceptor.bind(endpoint, problem);
  if (!problem) acceptor.listen(asio::socket_base::max_listen_connections, problem);
  if (problem) {
    return Error{ErrorKind::kIo, fmt::format("cannot listen on {}:{}: {} (choose another address with --host, --port)",
                                             host, port, problem.message())};
  }
  asio::co_spawn(loop.context(), accept_connections(acceptor, state->context), [state](const std::exception_ptr&) {});
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(state)));
}

uint16_t HttpServer::port() const {
  boost::system::error_code ignored;
  return state_->acceptor.local_endpoint(ignored).port();
}

size_t HttpServer::connections() const {
  return state_->context->connections;
}

size_t HttpServer::unanswered() const {
  return state_->context->busy;
}

}  // namespace plait
