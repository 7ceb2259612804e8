// Connections over loopback against small handlers: what every client may rely on, and what no client can do.
#include "server/http_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

namespace plait {
namespace {

using namespace std::chrono_literals;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// A blocking client socket.
class Client {
 public:
  explicit Client(uint16_t port, int receive_buffer = 0) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    if (receive_buffer > 0) setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    timeval patience{.tv_sec = 60};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    sockaddr_in address{.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  ~Client() { leave(); }
  void leave() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }
  void end_of_requests() { shutdown(fd_, SHUT_WR); }
  // Until `ending` came, or the end of the connection.
  std::string read_until(std::string_view ending) {
    std::string bytes;
    char buffer[4096];
    while (!(!ending.empty() && bytes.ends_with(ending))) {
      const ssize_t got = recv(fd_, buffer, sizeof buffer, 0);
      if (got <= 0) break;
      bytes.append(buffer, static_cast<size_t>(got));
    }
    return bytes;
  }
  std::string read_all() { return read_until(""); }

 private:
  int fd_;
};

std::string get(std::string_view path, std::string_view headers = "") {
  return fmt::format("GET {} HTTP/1.1\r\nHost: a\r\n{}\r\n", path, headers);
}
// Numbered lines, made a few at a time.
class Lines : public ByteSource {
 public:
  static constexpr int kLines = 40'000;
  static constexpr int kInAPiece = 3000;
  explicit Lines(std::atomic<int>& made) : made_(made) {}
  size_t size() const override { return size_t{kLines} * 10; }
  void append_piece(std::string& out) override {
    for (int i = 0; i < kInAPiece && line_ < kLines; ++i, ++made_) out += fmt::format("{:09}\n", line_++);
  }

 private:
  std::atomic<int>& made_;
  int line_ = 0;
};

std::string post(std::string_view path, std::string_view body) {
  return fmt::format("POST {} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{}", path, body.size(), body);
}

class HttpServerTest : public ::testing::Test {
 protected:
  void start(HttpLimits limits) {
    server_ =
        HttpServer::listen(loop_, "127.0.0.1", 0, limits,
                           {.check_head = [this](const HttpRequest& head) { return check(head); },
                            .handle = [this](std::shared_ptr<Exchange> exchange) { handle(std::move(exchange)); }})
            .value();
    thread_ = std::thread([this] { loop_.run(); });
  }
  void TearDown() override {
    loop_.post([this] {
      held_.clear();
      timers_.clear();
      server_.reset();
      loop_.stop();
    });
    thread_.join();
  }

  static std::optional<HttpResponse> check(const HttpRequest& head) {
    if (head.path == "/forbidden") return HttpResponse{.status = 404, .body = "no"};
    return std::nullopt;
  }

  void handle(std::shared_ptr<Exchange> exchange) {
    const HttpRequest& request = exchange->request();
    if (request.path == "/echo") exchange->respond({.body = request.body, .content_type = "text/plain"});
    if (request.path == "/size") exchange->respond({.body = std::to_string(request.body.size())});
    if (request.path == "/big") exchange->respond({.body = std::string(8 << 20, 'b')});
    if (request.path == "/never") {
      exchange->on_disconnect([this] { ++lost_; });
      held_.push_back(std::move(exchange));
    } else if (request.path == "/later") {
      respond_later(std::move(exchange));
    } else if (request.path == "/stream") {
      exchange->begin_stream("text/plain");
      for (int i = 0; i < 5; ++i) exchange->write({.text = fmt::format("piece {}\n", i), .long_values = {}});
      exchange->end_stream();
    } else if (request.path == "/endless") {
      exchange->begin_stream("text/plain");
      exchange->on_disconnect([this] { ++lost_; });
      write_on(std::move(exchange));
    } else if (request.path == "/half") {
      exchange->begin_stream("text/plain");
      exchange->write({.text = "half", .long_values = {}});
    }
    if (request.path == "/long-body") {
      AnswerText body = long_answer();
      exchange->respond({.body = std::move(body.text), .long_values = std::move(body.long_values)});
    } else if (request.path == "/long-stream") {
      exchange->begin_stream("text/plain");
      for (int i = 0; i < 3; ++i) exchange->write(long_answer());
      exchange->end_stream();
    }
    // "/dropped", and "/half": the exchange is let go without an end
  }
  // Text, lines, text, lines, text.
  AnswerText long_answer() {
    AnswerText answer;
    for (const char* text : {"<a>", "<b>"}) {
      answer.text += text;
      answer.append(std::make_shared<Lines>(lines_made_));
    }
    answer.text += "<c>\n";
    return answer;
  }
  static std::string long_answer_text() {
    std::string lines;
    for (int i = 0; i < Lines::kLines; ++i) lines += fmt::format("{:09}\n", i);
    return "<a>" + lines + "<b>" + lines + "<c>\n";
  }
  void respond_later(std::shared_ptr<Exchange> exchange) {
    auto timer = std::make_shared<EventLoop::Timer>(loop_);
    timers_.push_back(timer);
    timer->set(50ms, [exchange = std::move(exchange)] { exchange->respond({.body = exchange->request().body}); });
  }
  void write_on(std::shared_ptr<Exchange> exchange) {
    if (exchange->abandoned()) return;
    exchange->write({.text = std::string(64 << 10, 'x'), .long_values = {}});
    auto timer = std::make_shared<EventLoop::Timer>(loop_);
    timers_ = {timer};
    timer->set(1ms, [this, exchange = std::move(exchange)]() mutable { write_on(std::move(exchange)); });
  }
  void wait_for_losses(int count) {
    for (int i = 0; i < 10'000 && lost_ < count; ++i) std::this_thread::sleep_for(1ms);
    EXPECT_EQ(lost_, count);
  }
  std::string ask(std::string_view request) {
    Client client(server_->port());
    client.send(request);
    client.end_of_requests();
    return client.read_all();
  }

  EventLoop loop_{1};
  std::unique_ptr<HttpServer> server_;
  std::vector<std::shared_ptr<Exchange>> held_;
  std::vector<std::shared_ptr<EventLoop::Timer>> timers_;
  std::atomic<int> lost_ = 0;
  std::atomic<int> lines_made_ = 0;
  std::thread thread_;
};

TEST_F(HttpServerTest, AnswersARequest) {
  start({});
  const std::string answer = ask(post("/echo", "hello"));
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(answer, HasSubstr("Content-Length: 5\r\n"));
  EXPECT_THAT(answer, EndsWith("\r\n\r\nhello"));
}

// The body of an answer in chunks.
std::string joined_chunks(std::string_view answer) {
  answer.remove_prefix(answer.find("\r\n\r\n") + 4);
  std::string body;
  while (!answer.empty()) {
    const size_t size = std::stoul(std::string(answer.substr(0, answer.find("\r\n"))), nullptr, 16);
    answer.remove_prefix(answer.find("\r\n") + 2);
    body += answer.substr(0, size);
    EXPECT_EQ(answer.substr(size, 2), "\r\n");
    answer.remove_prefix(size + 2);
    if (size == 0) break;
  }
  EXPECT_TRUE(answer.empty());
  return body;
}

TEST_F(HttpServerTest, LongValuesAreMadeWhileTheyAreSent) {
  start({.unread_stream_bytes = 16 << 10});  // far less than a value
  const std::string expected = long_answer_text();
  const std::string body = ask(get("/long-body"));
  EXPECT_THAT(body, HasSubstr(fmt::format("Content-Length: {}\r\n", expected.size())));
  EXPECT_EQ(body.substr(body.find("\r\n\r\n") + 4), expected);
  EXPECT_EQ(joined_chunks(ask(get("/long-stream"))), expected + expected + expected);
}

TEST_F(HttpServerTest, LongValuesWaitForTheReader) {
  start({.unread_stream_bytes = 16 << 10});
  Client slow(server_->port(), /*receive_buffer=*/4096);
  slow.send(get("/long-stream"));
  const int all = 3 * 2 * Lines::kLines;
  int made = -1;
  while (made != lines_made_ || made == 0) {  // until it stops
    made = lines_made_;
    std::this_thread::sleep_for(100ms);
  }
  EXPECT_LT(made, all) << "socket buffers cannot hold it all, so some is not made yet";
  EXPECT_THAT(ask(post("/echo", "others go on")), EndsWith("others go on"));
  const std::string answer = slow.read_until("\r\n0\r\n\r\n");
  EXPECT_EQ(joined_chunks(answer), long_answer_text() + long_answer_text() + long_answer_text());
  EXPECT_EQ(lines_made_, all);
  // Gone in the middle: nothing is made for nobody.
  slow.send(get("/long-stream"));
  slow.leave();
  EXPECT_THAT(ask(post("/echo", "still here")), EndsWith("still here"));
}

TEST_F(HttpServerTest, PipelinedRequestsAreAnsweredInOrder) {
  start({});
  std::string requests;
  for (int i = 0; i < 50; ++i) requests += post(i % 3 == 0 ? "/later" : "/echo", fmt::format("<{}>", i));
  Client client(server_->port());
  client.send(requests);
  client.send(get("/size", "Connection: close\r\n"));
  const std::string answers = client.read_all();
  size_t position = 0;
  for (int i = 0; i < 50; ++i) {
    position = answers.find(fmt::format("<{}>", i), position);
    ASSERT_NE(position, std::string::npos) << i;
  }
}

TEST_F(HttpServerTest, StreamsInChunks) {
  start({});
  Client client(server_->port());
  client.send(get("/stream"));
  const std::string answer = client.read_until("0\r\n\r\n");
  EXPECT_THAT(answer, HasSubstr("Transfer-Encoding: chunked"));
  EXPECT_THAT(answer, HasSubstr("8\r\npiece 4\n\r\n"));
  client.send(post("/echo", "again"));
  EXPECT_THAT(client.read_until("again"), EndsWith("again")) << "the connection goes on";
}

TEST_F(HttpServerTest, Http10GetsNoChunks) {
  start({});
  Client client(server_->port());
  client.send("GET /stream HTTP/1.0\r\n\r\n");
  const std::string answer = client.read_all();
  EXPECT_THAT(answer, HasSubstr("Connection: close"));
  EXPECT_THAT(answer, EndsWith("\r\n\r\npiece 0\npiece 1\npiece 2\npiece 3\npiece 4\n"));
}

TEST_F(HttpServerTest, HeadHasNoBody) {
  start({});
  Client client(server_->port());
  client.send("HEAD /size HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  const std::string answer = client.read_all();
  EXPECT_THAT(answer, HasSubstr("Content-Length: 1\r\n"));
  EXPECT_THAT(answer, EndsWith("\r\n\r\n"));
}

TEST_F(HttpServerTest, RefusalsBeforeTheBodyCloseOnlyWhereABodyFollows) {
  start({});
  Client client(server_->port());
  client.send(get("/forbidden") + get("/size", "Connection: close\r\n"));
  const std::string both = client.read_all();
  EXPECT_THAT(both, StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(both, HasSubstr("HTTP/1.1 200"));
  Client with_body(server_->port());
  with_body.send("POST /forbidden HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nabc");
  const std::string refused = with_body.read_all();
  EXPECT_THAT(refused, StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(refused, HasSubstr("Connection: close"));
}

TEST_F(HttpServerTest, DroppedRequestsAreAnswered) {
  start({});
  EXPECT_THAT(ask(get("/dropped")), StartsWith("HTTP/1.1 500"));
  Client client(server_->port());
  client.send(get("/half", "Connection: close\r\n"));
  EXPECT_THAT(client.read_all(), EndsWith("4\r\nhalf\r\n")) << "a stream without an end does not look complete";
}

TEST_F(HttpServerTest, SlowRequestsTimeOut) {
  start({.read_timeout = 200ms, .idle_timeout = 400ms});
  for (const char* begin : {"GET / HT", "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc"}) {
    Client client(server_->port());
    client.send(begin);
    EXPECT_THAT(client.read_all(), StartsWith("HTTP/1.1 408")) << begin;
  }
  Client idle(server_->port());
  EXPECT_EQ(idle.read_all(), "") << "an idle connection is closed without a word";
}

TEST_F(HttpServerTest, BodiesBeyondTheLimitAreNotRead) {
  start({.body_bytes = 1000});
  EXPECT_THAT(ask(post("/size", std::string(1000, 'a'))), EndsWith("1000"));
  EXPECT_THAT(ask(post("/size", std::string(1001, 'a'))), StartsWith("HTTP/1.1 413"));
  Client chunks(server_->port());
  chunks.send("POST /size HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
  const std::string chunk = "64\r\n" + std::string(100, 'a') + "\r\n";
  for (int i = 0; i < 100'000 && chunks.send(chunk); ++i) {
  }
  EXPECT_THAT(chunks.read_all(), testing::AnyOf(StartsWith("HTTP/1.1 413"), "")) << "or reset, after so much of it";
}

TEST_F(HttpServerTest, EndlessLinesAreRefused) {
  start({.header_bytes = 4096});
  EXPECT_THAT(ask("GET /" + std::string(10'000, 'a')), StartsWith("HTTP/1.1 431"));
  EXPECT_THAT(ask("POST /size HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;" + std::string(1 << 20, 'a')),
              StartsWith("HTTP/1.1 4"));
}

TEST_F(HttpServerTest, LeavingClientsAreNoticed) {
  start({});
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 20; ++i) {
    clients.push_back(std::make_unique<Client>(server_->port()));
    clients.back()->send(get("/never"));
  }
  std::this_thread::sleep_for(100ms);
  EXPECT_EQ(lost_, 0);
  clients.clear();
  wait_for_losses(20);
}

TEST_F(HttpServerTest, HalfClosedClientsGetTheirAnswer) {
  start({});
  Client client(server_->port());
  client.send(post("/later", "first") + post("/later", "second"));
  client.end_of_requests();
  const std::string answers = client.read_all();
  EXPECT_THAT(answers, HasSubstr("first"));
  EXPECT_THAT(answers, EndsWith("Connection: close\r\n\r\nsecond"));
  EXPECT_EQ(lost_, 0);
}

TEST_F(HttpServerTest, HalfClosedClientsThatLeaveAreNoticed) {
  start({});
  std::vector<std::unique_ptr<Client>> clients;
  for (const char* path : {"/never", "/endless"}) {
    clients.push_back(std::make_unique<Client>(server_->port()));
    clients.back()->send(get(path));
    clients.back()->end_of_requests();
  }
  clients.back()->read_until("xxx");
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(lost_, 0) << "they may be waiting";
  clients.clear();
  wait_for_losses(2);
}

TEST_F(HttpServerTest, WithoutInterimResponsesAHalfClosedClientCountsAsGone) {
  start({});
  Client client(server_->port());
  client.send("GET /never HTTP/1.0\r\n\r\n");
  client.end_of_requests();
  wait_for_losses(1);
}

TEST_F(HttpServerTest, AStreamThatNobodyReadsIsCutOff) {
  start({.unread_stream_bytes = 256 << 10});
  Client client(server_->port(), 4096);
  client.send(get("/endless"));
  wait_for_losses(1);
}

TEST_F(HttpServerTest, AnAnswerThatNobodyReadsIsCutOff) {
  start({.write_timeout = 300ms});
  Client client(server_->port(), 4096);
  client.send(get("/big"));
  std::this_thread::sleep_for(1s);
  const std::string got = client.read_all();
  EXPECT_LT(got.size(), size_t{8} << 20);
}

TEST_F(HttpServerTest, SlowReadersOfLargeAnswersGetAllOfIt) {
  start({});
  Client client(server_->port(), 4096);
  client.send(get("/big", "Connection: close\r\n"));
  EXPECT_GT(client.read_all().size(), size_t{8} << 20);
}

TEST_F(HttpServerTest, ManyConnectionsAtOnce) {
  start({});
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 300; ++i) clients.push_back(std::make_unique<Client>(server_->port()));
  for (int i = 0; i < 300; ++i) clients[i]->send(post("/later", fmt::format("<{}>", i)));
  for (int i = 0; i < 300; ++i) EXPECT_THAT(clients[i]->read_until(">"), EndsWith(fmt::format("<{}>", i)));
}

TEST_F(HttpServerTest, SaysWhyItCannotListen) {
  start({});
  const auto same_port = HttpServer::listen(loop_, "127.0.0.1", server_->port(), {}, {});
  ASSERT_TRUE(same_port.has_error());
  EXPECT_THAT(same_port.error().message, HasSubstr("--port"));
  const auto no_address = HttpServer::listen(loop_, "999.1.1.1", 0, {}, {});
  ASSERT_TRUE(no_address.has_error());
  EXPECT_THAT(no_address.error().message, HasSubstr("--host"));
}

}  // namespace
}  // namespace plait
