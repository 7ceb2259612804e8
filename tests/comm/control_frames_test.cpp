#include "comm/control_frames.h"

#include <random>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "comm/hmac.h"

namespace plait::comm {
namespace {

std::vector<uint8_t> bytes(std::string_view text) {
  return {text.begin(), text.end()};
}

TEST(Hmac, PublishedVectors) {
  // RFC 4231, cases 1, 2 and 6
  EXPECT_EQ(to_hex(hmac_sha256(std::string(20, '\x0b'), bytes("Hi There"))),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
  EXPECT_EQ(to_hex(hmac_sha256("Jefe", bytes("what do ya want for nothing?"))),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  EXPECT_EQ(
      to_hex(hmac_sha256(std::string(131, '\xaa'), bytes("Test Using Larger Than Block-Size Key - Hash Key First"))),
      "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
}

Join some_join() {
  Join join;
  join.plait_version = "0.1.0";
  join.nonce[3] = 7;
  join.nodes = 4;
  join.node = 2;
  join.ranks = 8;
  join.host_name = "b";
  join.configuration = {{"--tp-size", "8"}, {"--model", ""}};
  join.proof[0] = 9;
  return join;
}

TEST(ControlFrames, RoundTrips) {
  const Join join = decode_join(encode(some_join())).value();
  EXPECT_EQ(join.plait_version, "0.1.0");
  EXPECT_EQ(join.nonce[3], 7);
  EXPECT_EQ(join.node, 2U);
  EXPECT_EQ(join.ranks, 8U);
  EXPECT_EQ(join.configuration, some_join().configuration);
  EXPECT_EQ(join.proof, some_join().proof);
  const auto failure = decode_failure(encode(Failure{FailureKind::kMismatch, -1, 3, "why"})).value();
  EXPECT_EQ(failure.kind, FailureKind::kMismatch);
  EXPECT_EQ(failure.rank, -1);
  EXPECT_EQ(failure.message, "why");
  EXPECT_EQ(decode_question(encode(Question{1, 2, 3, 4, 5})).value().call, 5U);
  EXPECT_EQ(decode_answer(encode(Answer{1, 2, 3, {6, 7}})).value().late_members, (std::vector<uint32_t>{6, 7}));
  const std::vector<std::vector<uint8_t>> blobs = {{}, {1, 2}, {3}};
  EXPECT_EQ(decode_blobs(encode(blobs)).value(), blobs);
}

TEST(ControlFrames, EveryTruncationAndRandomDamageIsAnError) {
  const auto whole = encode(some_join());
  int64_t cases = 0;
  for (size_t size = 0; size < whole.size(); ++size, ++cases)
    EXPECT_TRUE(decode_join(std::span(whole).first(size)).has_error()) << size;
  auto longer = whole;
  longer.push_back(0);
  EXPECT_TRUE(decode_join(longer).has_error());
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i, ++cases) {
    auto damaged = whole;
    for (int k = 0; k < 3; ++k) damaged[random() % damaged.size()] = static_cast<uint8_t>(random());
    (void)decode_join(damaged);
    (void)decode_table(damaged);
    (void)decode_blobs(damaged);
    (void)decode_failure(damaged);
    (void)decode_answer(damaged);
    (void)first_frame(damaged);
  }
  fmt::print("{} damaged control frames\n", cases);
}

TEST(ControlFrames, FramesAreCutFromAStream) {
  const auto frame = make_frame(FrameType::kGoodbye, {});
  EXPECT_EQ(frame.size(), kFrameHeaderBytes);
  EXPECT_FALSE(first_frame(std::span(frame).first(5)).value().has_value());
  EXPECT_EQ(first_frame(frame).value()->bytes, frame.size());
  EXPECT_TRUE(first_frame(bytes("GET / HTTP/1.1")).has_error());
  EXPECT_TRUE(first_frame(bytes("G")).has_error());
  auto huge = frame;
  huge[11] = 0xff;
  EXPECT_TRUE(first_frame(huge).has_error());
}

}  // namespace
}  // namespace plait::comm
