// Two or three nodes as threads of the test, each with its own Meeting.
#include "comm/rendezvous.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <thread>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "comm/sockets.h"
#include "tests/comm/processes.h"

namespace plait::comm {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using testing::free_port;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::options_for;

// What meet() says to node 1, which differs from node 0 by `change`; node 0 waits 2 s.
std::string refusal(const std::function<void(RendezvousOptions&)>& change, std::string* host_says = nullptr) {
  const int port = free_port();
  std::string host_error, guest_error;
  std::thread host([&] {
    auto options = options_for(port, 2, 0, 1);
    options.configuration = {{"--tp-size", "4"}, {"--dtype", "bf16"}};
    options.limit = milliseconds(2000);
    auto meeting = meet(options);
    if (meeting.has_error()) host_error = meeting.error().message;
  });
  auto options = options_for(port, 2, 1, 1);
  options.configuration = {{"--tp-size", "4"}, {"--dtype", "bf16"}};
  change(options);
  auto meeting = meet(options);
  if (meeting.has_error()) guest_error = meeting.error().message;
  host.join();
  if (host_says != nullptr) *host_says = host_error;
  return guest_error;
}

// A connection to a node that begins to listen about now.
Socket connect_when_open(int port) {
  const auto deadline = Clock::now() + std::chrono::seconds(20);
  for (;;) {
    auto socket = connect_to({"127.0.0.1", std::to_string(port)}, deadline);
    if (!socket.has_error() || Clock::now() >= deadline) return std::move(socket).value();
    std::this_thread::sleep_for(milliseconds(5));
  }
}

TEST(Rendezvous, NodesMeetInAnyOrderAndExchange) {
  const int port = free_port();
  std::vector<std::vector<Node>> nodes(3);
  std::vector<std::vector<std::vector<uint8_t>>> blobs(3);
  std::vector<std::thread> threads;
  for (const int node : {2, 1, 0}) {
    threads.emplace_back([&, node] {
      auto meeting = meet(options_for(port, 3, node, node + 1));
      ASSERT_FALSE(meeting.has_error()) << meeting.error().message;
      nodes[static_cast<size_t>(node)] = meeting.value().nodes;
      blobs[static_cast<size_t>(node)] =
          meeting.value().exchange({static_cast<uint8_t>(node)}, milliseconds(20000)).value();
    });
    std::this_thread::sleep_for(milliseconds(50));
  }
  for (auto& thread : threads) thread.join();
  for (int node = 0; node < 3; ++node) {
    ASSERT_EQ(nodes[static_cast<size_t>(node)].size(), 3U);
    EXPECT_EQ(nodes[static_cast<size_t>(node)][2].first_rank, 3);
    EXPECT_EQ(nodes[static_cast<size_t>(node)][2].ranks, 3);
    EXPECT_EQ(nodes[static_cast<size_t>(node)][1].host, "127.0.0.1");
    EXPECT_EQ(blobs[static_cast<size_t>(node)], (std::vector<std::vector<uint8_t>>{{0}, {1}, {2}}));
  }
}

TEST(Rendezvous, RefusalsSayWhatDiffers) {
  std::string host;
  EXPECT_THAT(refusal([](auto& o) { o.configuration[0].second = "8"; }, &host),
              HasSubstr("--tp-size: node 0 has '4', node 1 has '8'"));
  EXPECT_THAT(host, AllOf(HasSubstr("for node 1 of 2"), HasSubstr("--tp-size")));
  EXPECT_THAT(refusal([](auto& o) { o.configuration.pop_back(); }),
              HasSubstr("--dtype: node 0 has 'bf16', node 1 has ''"));
  EXPECT_THAT(refusal([](auto& o) { o.nodes = 3; }), HasSubstr("node 1 has --nnodes 3, node 0 has --nnodes 2"));
  EXPECT_THAT(refusal([](auto& o) { o.secret = "wrong-secret-text"; }, &host), HasSubstr("secret"));
  EXPECT_THAT(host, AllOf(Not(HasSubstr("wrong-secret-text")), Not(HasSubstr("a test's secret"))));
  EXPECT_THAT(refusal([](auto& o) { o.node = 7; }), HasSubstr("--node-rank 7 does not fit --nnodes 2"));
  EXPECT_THAT(refusal([](auto& o) { o.address = "localhost"; }), HasSubstr("'localhost' is not host:port"));
}

TEST(Rendezvous, AnotherProtocolIsToldSo) {
  const int port = free_port();
  std::thread host([&] {
    auto options = options_for(port, 2, 0, 1);
    options.limit = milliseconds(4000);
    (void)meet(options);
  });
  const auto deadline = Clock::now() + std::chrono::seconds(20);
  Socket socket = connect_when_open(port);
  (void)read_frame(socket.get(), deadline).value();
  Join join;
  join.version = 99;
  join.plait_version = "9.9";
  ASSERT_FALSE(send_all(socket.get(), make_frame(FrameType::kJoin, encode(join)), deadline).has_error());
  const auto answer = read_frame(socket.get(), deadline).value();
  EXPECT_EQ(answer.type, FrameType::kRefuse);
  EXPECT_THAT(std::string(answer.payload.begin(), answer.payload.end()),
              HasSubstr(fmt::format("protocol 99 (plait 9.9) cannot join protocol {}", kControlVersion)));
  host.join();
}

TEST(Rendezvous, TheSameNodeTwiceIsRefused) {
  const int port = free_port();
  std::thread host([&] {
    auto options = options_for(port, 3, 0, 1);
    options.limit = milliseconds(3000);
    (void)meet(options);
  });
  std::array<std::string, 2> said;
  std::vector<std::thread> both;
  for (std::string& text : said) {
    both.emplace_back([&] {
      auto options = options_for(port, 3, 1, 1);
      options.limit = milliseconds(3000);
      text = meet(options).error().message;
    });
  }
  for (auto& thread : both) thread.join();
  host.join();
  EXPECT_EQ(std::ranges::count_if(
                said, [](auto& text) { return text.find("node 1 is here already, from 127.0.0.1") != text.npos; }),
            1)
      << said[0] << "\n"
      << said[1];
}

TEST(Rendezvous, AnImpostorWithoutTheSecretIsNotBelieved) {
  Socket listener = listen_at({"127.0.0.1", "0"}).value();
  sockaddr_in address{};
  socklen_t length = sizeof(address);
  getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length);
  std::thread impostor([&] {
    std::optional<Socket> guest;
    while (!(guest = accept_one(listener.get()))) std::this_thread::sleep_for(milliseconds(5));
    const auto deadline = Clock::now() + std::chrono::seconds(20);
    (void)send_all(guest->get(), make_frame(FrameType::kHello, encode(Hello{kControlVersion, "0.1.0", {}})), deadline);
    (void)read_frame(guest->get(), deadline);
    (void)send_all(guest->get(), make_frame(FrameType::kWelcome, Digest{}), deadline);
    (void)read_frame(guest->get(), deadline);
  });
  auto meeting = meet(options_for(ntohs(address.sin_port), 2, 1, 1));
  impostor.join();
  ASSERT_TRUE(meeting.has_error());
  EXPECT_THAT(meeting.error().message, HasSubstr("does not know the shared secret"));
}

TEST(Rendezvous, StrangersDisturbNobody) {
  const int port = free_port();
  std::vector<std::thread> threads;
  std::atomic<int> met{0};
  threads.emplace_back([&] { met += !meet(options_for(port, 2, 0, 1)).has_error(); });
  std::vector<Socket> silent;
  int strangers = 0;
  const auto deadline = Clock::now() + std::chrono::seconds(30);
  for (int i = 0; i < 100; ++i, ++strangers) {
    Socket socket = connect_when_open(port);
    const std::string_view text = i % 3 == 0   ? "GET / HTTP/1.0\r\n\r\n"
                                  : i % 3 == 1 ? std::string_view("\x16\x03\x01\0\0", 5)
                                               : "";
    (void)send_all(socket.get(), {reinterpret_cast<const uint8_t*>(text.data()), text.size()}, deadline);
    if (i % 2 == 0) silent.push_back(std::move(socket));
  }
  const auto begin = Clock::now();
  threads.emplace_back([&] { met += !meet(options_for(port, 2, 1, 1)).has_error(); });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(met.load(), 2);
  EXPECT_LT(Clock::now() - begin, milliseconds(2000)) << "the limit is 30 s";
  fmt::print("{} strangers at the rendezvous\n", strangers);
}

TEST(Rendezvous, WaitsAreBoundedAndNameTheMissing) {
  auto options = options_for(free_port(), 4, 0, 1);
  options.limit = milliseconds(300);
  options.progress_interval = milliseconds(100);
  auto host = meet(options);
  ASSERT_TRUE(host.has_error());
  EXPECT_EQ(host.error().kind, ErrorKind::kDeadline);
  EXPECT_THAT(host.error().message, HasSubstr("for nodes 1, 2, 3 of 4"));
  options.node = 1;
  auto guest = meet(options);
  ASSERT_TRUE(guest.has_error());
  EXPECT_EQ(guest.error().kind, ErrorKind::kDeadline);
  EXPECT_THAT(guest.error().message, HasSubstr("node 1 did not reach node 0"));
}

}  // namespace
}  // namespace plait::comm
