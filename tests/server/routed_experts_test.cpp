// Routed experts on their way to the client: rows cut into frames, text made in pieces, answers with them inside.
#include "server/routed_experts.h"

#include <random>

#include <boost/json/parse.hpp>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "server/native_api.h"
#include "server/output_sender.h"
#include "tests/support/effort.h"

namespace plait {
namespace {

// Bit by bit, as RFC 4648 defines it.
std::string decode_base64(std::string_view text) {
  constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  EXPECT_EQ(text.size() % 4, 0u);
  std::string bytes;
  uint32_t bits = 0;
  int count = 0;
  while (text.ends_with('=')) text.remove_suffix(1);
  for (const char character : text) {
    const size_t value = kAlphabet.find(character);
    EXPECT_NE(value, std::string_view::npos) << character;
    bits = bits << 6 | static_cast<uint32_t>(value);
    count += 6;
    if (count >= 8) bytes += static_cast<char>(bits >> (count -= 8) & 0xff);
  }
  return bytes;
}

RoutedExpertShape random_shape(std::mt19937& random) {
  RoutedExpertShape shape;
  shape.layers = 1 + static_cast<int64_t>(random() % 9);
  for (int64_t layer = 0; layer < shape.layers; ++layer)
    if (random() % 3 != 0) shape.expert_layers.push_back(layer);
  shape.experts_per_token = 1 + static_cast<int64_t>(random() % 8);
  shape.id_bytes = 1 + static_cast<int64_t>(random() % 2);
  return shape;
}

std::string random_rows(const RoutedExpertShape& shape, int64_t count, std::mt19937& random) {
  std::string rows(static_cast<size_t>(count * shape.row_bytes()), '\0');
  for (char& byte : rows) byte = static_cast<char>(random());
  return rows;
}

// What every id of the answer must be, [tokens, layers, k].
std::vector<int32_t> expanded(const RoutedExpertShape& shape, const std::string& rows, int64_t count) {
  std::vector<int32_t> ids;
  size_t at = 0;
  for (int64_t row = 0; row < count; ++row)
    for (int64_t layer = 0; layer < shape.layers; ++layer)
      for (int64_t i = 0; i < shape.experts_per_token; ++i) {
        const bool has_experts = std::count(shape.expert_layers.begin(), shape.expert_layers.end(), layer) > 0;
        int32_t id = 0;
        if (has_experts) id = static_cast<uint8_t>(rows[at++]);
        if (has_experts && shape.id_bytes == 2) id += 256 * static_cast<uint8_t>(rows[at++]);
        ids.push_back(id);
      }
  return ids;
}

TEST(RoutedExpertsText, IsTheIdsInBothFormats) {
  std::mt19937 random(5);
  int cases = 0;
  size_t pieces = 0;
  for (int i = 0; i < repetitions(300); ++i) {
    const RoutedExpertShape shape = random_shape(random);
    const int64_t longest = i % 10 == 0 ? 3000 : 7;  // some take several pieces
    const int64_t count = static_cast<int64_t>(random() % static_cast<uint64_t>(longest));
    // The store may hold more than the answer has: rows behind a stop string.
    const auto rows = std::make_shared<const std::string>(random_rows(shape, count + 2, random));
    const std::vector<int32_t> expected = expanded(shape, *rows, count);
    for (const RoutedExpertsFormat format : {RoutedExpertsFormat::kInt32, RoutedExpertsFormat::kCompact}) {
      const auto source = routed_experts_text(shape, format, rows, count);
      std::string text;
      for (; text.size() < source->size(); ++pieces) source->append_piece(text);
      ASSERT_EQ(text.size(), source->size());
      const std::string bytes = decode_base64(text);
      const size_t width = format == RoutedExpertsFormat::kInt32 ? 4 : static_cast<size_t>(shape.id_bytes);
      ASSERT_EQ(bytes.size(), expected.size() * width);
      for (size_t j = 0; j < expected.size(); ++j) {
        uint32_t id = 0;
        for (size_t byte = 0; byte < width; ++byte)
          id |= static_cast<uint32_t>(static_cast<uint8_t>(bytes[j * width + byte])) << (8 * byte);
        ASSERT_EQ(id, static_cast<uint32_t>(expected[j])) << "id " << j;
      }
      ++cases;
    }
  }
  fmt::print("{} answers of routed experts in {} pieces\n", cases, pieces);
}

TEST(OutputPieces, KeepEveryRowInOrderAndTokensLast) {
  std::mt19937 random(6);
  int cut = 0;
  for (int i = 0; i < repetitions(200); ++i) {
    std::vector<RequestOutput> outputs;
    std::map<RequestId, std::string> sent;
    const size_t row_bytes = 1 + random() % 50;
    for (RequestId id = 1; id <= 3; ++id) {
      RequestOutput& output = outputs.emplace_back();
      output.id = id;
      output.cached_tokens = 9;
      output.routed_experts.count = static_cast<int64_t>(random() % 40);
      output.routed_experts.ids.resize(static_cast<size_t>(output.routed_experts.count) * row_bytes);
      for (char& byte : output.routed_experts.ids) byte = static_cast<char>(random());
      output.tokens.push_back({.id = 4});
      output.finish = Finish{};
      sent[id] = output.routed_experts.ids;
    }
    const size_t most = 1 + random() % 300;
    std::map<RequestId, std::string> received;
    std::set<RequestId> finished;
    const auto pieces = in_pieces(std::move(outputs), most);
    cut += static_cast<int>(pieces.size()) - 3;
    for (const RequestOutput& piece : pieces) {
      ASSERT_FALSE(finished.contains(piece.id));
      ASSERT_EQ(piece.routed_experts.ids.size(), static_cast<size_t>(piece.routed_experts.count) * row_bytes);
      ASSERT_LE(piece.routed_experts.ids.size(), std::max(most, row_bytes));
      ASSERT_EQ(piece.cached_tokens, 9);
      ASSERT_EQ(piece.tokens.size(), piece.finish ? 1u : 0u);
      received[piece.id] += piece.routed_experts.ids;
      if (piece.finish) finished.insert(piece.id);
    }
    ASSERT_EQ(received, sent);
    ASSERT_EQ(finished.size(), 3u);
  }
  EXPECT_GT(cut, 100);
}

class RoutedExpertsRequest : public ::testing::Test {
 protected:
  RoutedExpertsRequest() {
    context_.config.vocab_size = 100;
    context_.context_tokens = 1000;
    context_.routed_experts =
        RoutedExpertShape{.layers = 2, .expert_layers = {1}, .experts_per_token = 2, .id_bytes = 1};
  }
  ApiResult<GenerationRequest> parse(std::string_view body) {
    return parse_generate(context_, boost::json::parse(body).as_object());
  }
  ApiContext context_;
};

TEST_F(RoutedExpertsRequest, AnswerEndsWhereTheTokensDo) {
  GenerationRequest request =
      parse(R"({"input_ids": [1, 2, 3], "return_routed_experts": true, "routed_experts_start_len": 1})").value();
  ASSERT_TRUE(request.sequences[0].request.return_routed_experts);
  ASSERT_EQ(request.sequences[0].request.routed_experts_start, 1);
  std::vector<std::unique_ptr<ClientSequence>> sequences;
  sequences.push_back(std::make_unique<ClientSequence>(std::move(request.sequences[0]), nullptr));
  const auto output = [](int64_t count, std::string ids, std::vector<int32_t> tokens) {
    RequestOutput made;
    made.routed_experts = {count, std::move(ids)};
    for (const int32_t id : tokens) made.tokens.push_back({.id = id});
    return made;
  };
  sequences[0]->accept(output(1, "\x01\x02", {}));          // a chunk of the prompt
  sequences[0]->accept(output(1, "\x03\x04", {7}));         // its end, and the first token
  EXPECT_EQ(sequences[0]->routed_row_count(), 2);           // of positions 1 and 2
  RequestOutput last = output(2, "\x05\x06\x07\x08", {8});  // a row more than inputs so far
  last.finish = Finish{.kind = FinishKind::kLength};
  sequences[0]->accept(std::move(last));
  EXPECT_EQ(sequences[0]->routed_row_count(), 3);

  AnswerText answer = request.format->body(sequences);
  ASSERT_EQ(answer.long_values.size(), 1u);
  std::string value;
  answer.long_values[0].source->append_piece(value);
  const std::string ids = decode_base64(value);
  ASSERT_EQ(ids.size(), 3u * 2 * 2 * 4);
  EXPECT_EQ(ids[2 * 4], 1) << "the dense layer's zeros come first";
  EXPECT_EQ(ids[0], 0);
  answer.text.insert(answer.long_values[0].at, value);
  const auto body = boost::json::parse(answer.text);
  EXPECT_EQ(body.at("meta_info").at("routed_experts").as_string(), value);
}

TEST_F(RoutedExpertsRequest, IsRefusedWithReasons) {
  const auto refused = [&](std::string_view body) {
    const auto result = parse(body);
    return result.has_error() ? result.error() : ApiError{.status = 0};
  };
  EXPECT_EQ(refused(R"({"input_ids": [1], "return_routed_experts": 1})").param, "return_routed_experts");
  EXPECT_EQ(refused(R"({"input_ids": [1], "routed_experts_start_len": -1})").param, "routed_experts_start_len");
  EXPECT_EQ(refused(R"({"input_ids": [1], "routed_experts_format": "int64"})").param, "routed_experts_format");
  context_.limits.routed_expert_bytes = 100;
  EXPECT_EQ(refused(R"({"input_ids": [1], "return_routed_experts": true})").param, "return_routed_experts");
  EXPECT_EQ(refused(R"({"input_ids": [1], "return_routed_experts": true, "routed_experts_start_len": 100})").status, 0);
  context_.routed_experts.reset();
  const ApiError error = refused(R"({"input_ids": [1], "return_routed_experts": true})");
  EXPECT_EQ(error.status, 400);
  EXPECT_NE(error.message.find("--enable-return-routed-experts"), std::string::npos) << error.message;
}

}  // namespace
}  // namespace plait
