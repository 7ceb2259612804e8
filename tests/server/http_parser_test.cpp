// HTTP from strangers: what is accepted, what is refused and how, in any cut of the bytes.
#include "server/http_parser.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace plait {
namespace {

using State = HttpParser::State;

struct Outcome {
  State state = State::kNeedMore;
  HttpRequest request;
  int status = 0;  // of the error
  size_t left = 0;
};

constexpr size_t kHeaderLimit = 1024;
constexpr size_t kBodyLimit = 4096;

// Feeds `bytes` in pieces of `piece` bytes, as a connection would.
Outcome parse(std::string_view bytes, size_t piece) {
  HttpParser parser(kHeaderLimit, kBodyLimit);
  std::string buffer;
  Outcome outcome;
  for (size_t begin = 0; begin < bytes.size();) {
    buffer += bytes.substr(begin, piece);
    begin += std::min(piece, bytes.size() - begin);
    do {
      size_t consumed = 0;
      outcome.state = parser.feed(buffer, consumed);
      EXPECT_LE(consumed, buffer.size());
      buffer.erase(0, consumed);
    } while (outcome.state == State::kHeader);
    if (outcome.state != State::kNeedMore) {
      outcome.left = buffer.size() + bytes.size() - begin;
      break;
    }
  }
  if (outcome.state == State::kComplete) outcome.request = parser.request();
  if (outcome.state == State::kError) outcome.status = parser.error()->status;
  return outcome;
}

void expect_same_in_any_cut(std::string_view bytes, State state, int status = 0) {
  for (const size_t piece : {size_t{1}, size_t{2}, size_t{3}, size_t{10}, size_t{1000}, bytes.size()}) {
    const Outcome outcome = parse(bytes, piece);
    EXPECT_EQ(outcome.state, state) << "pieces of " << piece << ": " << bytes.substr(0, 80);
    EXPECT_EQ(outcome.status, status) << "pieces of " << piece << ": " << bytes.substr(0, 80);
  }
}

TEST(HttpParser, ReadsARequestWithABody) {
  const std::string bytes =
      "POST /generate?x=1 HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nAuthorization: Bearer k\r\n"
      "Content-Length: 5\r\n\r\nhelloGET";
  for (const size_t piece : {1, 4, 1000}) {
    const Outcome outcome = parse(bytes, piece);
    ASSERT_EQ(outcome.state, State::kComplete);
    EXPECT_EQ(outcome.request.method, "POST");
    EXPECT_EQ(outcome.request.path, "/generate");
    EXPECT_EQ(outcome.request.query, "x=1");
    EXPECT_EQ(outcome.request.body, "hello");
    EXPECT_EQ(outcome.request.authorization, "Bearer k");
    EXPECT_TRUE(outcome.request.keep_alive);
    EXPECT_TRUE(outcome.request.has_body);
    EXPECT_EQ(outcome.left, 3U) << "the next request is left alone";
  }
}

TEST(HttpParser, ReadsChunks) {
  std::string bytes = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
  std::string body;
  for (int i = 0; i < 1000; ++i) {
    bytes += "1\r\n" + std::string(1, static_cast<char>('a' + i % 26)) + "\r\n";
    body += static_cast<char>('a' + i % 26);
  }
  bytes += "0\r\n\r\n";
  for (const size_t piece : {1, 7, 100'000}) {
    const Outcome outcome = parse(bytes, piece);
    ASSERT_EQ(outcome.state, State::kComplete);
    EXPECT_EQ(outcome.request.body, body);
  }
}

TEST(HttpParser, StopsAtTheHeaderSoThatTheBodyCanBeRefused) {
  HttpParser parser(kHeaderLimit, kBodyLimit);
  size_t consumed = 0;
  const std::string head = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
  EXPECT_EQ(parser.feed(head, consumed), State::kHeader);
  EXPECT_TRUE(parser.request().expects_continue);
  EXPECT_EQ(consumed, head.size());
  EXPECT_EQ(parser.feed("", consumed), State::kNeedMore);
  EXPECT_EQ(parser.feed("abc", consumed), State::kComplete);
}

TEST(HttpParser, ReadsTargetsForProxies) {
  const auto path = [](const std::string& target) {
    const HttpRequest request = parse("GET " + target + " HTTP/1.1\r\nHost: a\r\n\r\n", 1000).request;
    return request.path + "?" + request.query;
  };
  EXPECT_EQ(path("http://localhost:30000/health?a=b"), "/health?a=b");
  EXPECT_EQ(path("http://localhost"), "/?");
  EXPECT_EQ(path("/health?to=http://localhost/x"), "/health?to=http://localhost/x");
}

TEST(HttpParser, SkipsEmptyLinesBeforeARequest) {
  for (const size_t piece : {1, 2, 3, 1000}) {
    const Outcome outcome = parse("\r\n\r\nGET /health HTTP/1.1\r\nHost: a\r\n\r\n", piece);
    ASSERT_EQ(outcome.state, State::kComplete) << piece;
    EXPECT_EQ(outcome.request.path, "/health");
  }
}

TEST(HttpParser, KnowsWhenAConnectionStays) {
  EXPECT_FALSE(parse("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 99).request.keep_alive);
  EXPECT_FALSE(parse("GET / HTTP/1.0\r\n\r\n", 99).request.keep_alive);
  EXPECT_TRUE(parse("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 99).request.keep_alive);
  EXPECT_TRUE(parse("GET / HTTP/1.0\r\n\r\n", 99).request.http_1_0);
}

struct Hostile {
  const char* what;
  std::string bytes;
  int status;
};

std::string post(const std::string& headers, const std::string& body = "") {
  return "POST /generate HTTP/1.1\r\nHost: a\r\n" + headers + "\r\n" + body;
}

TEST(HttpParser, RefusesWhatIsHostile) {
  std::string many_headers;
  for (int i = 0; i < 1000; ++i) many_headers += "a: b\r\n";
  const std::string chunked = "Transfer-Encoding: chunked\r\n";
  const Hostile cases[] = {
      {"endless request line", "GET /" + std::string(5000, 'a'), 431},
      {"endless header line", "GET / HTTP/1.1\r\nHost: " + std::string(5000, 'a'), 431},
      {"endless headers", "GET / HTTP/1.1\r\n" + many_headers, 431},
      {"declared body too large", post("Content-Length: 4097\r\n"), 413},
      {"body length of 2^64", post("Content-Length: 18446744073709551616\r\n"), 400},
      {"negative body length", post("Content-Length: -1\r\n"), 400},
      {"body length in hex", post("Content-Length: 0x10\r\n"), 400},
      {"two different body lengths", post("Content-Length: 1\r\nContent-Length: 2\r\n"), 400},
      {"chunks and a length", post(chunked + "Content-Length: 5\r\n"), 400},
      {"chunks larger than the limit", post(chunked, "1001\r\n" + std::string(0x1001, 'a') + "\r\n0\r\n\r\n"), 413},
      {"many chunks, larger together",
       post(chunked,
            [] {
              std::string body;
              for (int i = 0; i < 500; ++i) body += "10\r\n0123456789abcdef\r\n";
              return body;
            }()),
       413},
      {"an unknown transfer encoding", post("Transfer-Encoding: gzip\r\n"), 400},
      {"chunks inside another encoding", post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), 400},
      {"negative chunk size", post(chunked, "-1\r\n"), 400},
      {"chunk size of 2^64 - 1", post(chunked, "ffffffffffffffff\r\n"), 413},
      {"chunk size beyond 2^64", post(chunked, "10000000000000000\r\n"), 400},
      {"chunk size is no number", post(chunked, "zz\r\n"), 400},
      {"chunk longer than it says", post(chunked, "1\r\nabc\r\n"), 400},
      {"no HTTP at all", "\x16\x03\x01\x02\x00\x01", 400},
      {"binary zeros", std::string(64, '\0'), 400},
      {"line feeds only", "GET / HTTP/1.1\nHost: a\r\n\r\n", 400},
      {"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400},
      {"HTTP/3.7", "GET / HTTP/3.7\r\nHost: a\r\n\r\n", 400},
      {"no Host", "GET / HTTP/1.1\r\n\r\n", 400},
      {"two Hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
      {"space before the colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400},
      {"folded header", "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 0},
      {"control byte in a header", "GET / HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n", 400},
      {"space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400},
  };
  for (const Hostile& hostile : cases) {
    SCOPED_TRACE(hostile.what);
    expect_same_in_any_cut(hostile.bytes, hostile.status == 0 ? State::kComplete : State::kError, hostile.status);
  }
  std::printf("tried %zu hostile byte streams in 6 cuts each\n", std::size(cases));
}

}  // namespace
}  // namespace plait
