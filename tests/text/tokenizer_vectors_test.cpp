// The demo model's tokenizer against the ids and texts that the reference library gave.
#include <boost/json/array.hpp>
#include <boost/json/value_to.hpp>

#include "tests/text/test_data.h"

namespace plait {
namespace {

boost::json::array vectors() {
  return boost::json::parse(read_repository_file("tests/data/tokenizer_vectors.json")).at("tokenizer").as_array();
}

TEST(TokenizerVectors, BothDirections) {
  const Tokenizer& tokenizer = demo_tokenizer();
  int texts = 0;
  for (const boost::json::value& vector : vectors()) {
    const auto text = boost::json::value_to<std::string>(vector.at("text"));
    const auto ids = boost::json::value_to<std::vector<int32_t>>(vector.at("ids"));
    const auto ids_with_bos = boost::json::value_to<std::vector<int32_t>>(vector.at("ids_with_bos"));
    EXPECT_EQ(tokenizer.encode(text, false), ids) << text;
    EXPECT_EQ(tokenizer.encode(text, true), ids_with_bos) << text;
    EXPECT_EQ(tokenizer.decode(ids, false), boost::json::value_to<std::string>(vector.at("decoded"))) << text;
    ++texts;
  }
  EXPECT_EQ(texts, 434);
  std::printf("%d texts: ids, ids with BOS, and back\n", texts);
}

TEST(TokenizerVectors, Tokens) {
  const Tokenizer& tokenizer = demo_tokenizer();
  EXPECT_EQ(tokenizer.vocab_size(), 4098);
  EXPECT_EQ(tokenizer.bos_id(), 0);
  EXPECT_EQ(tokenizer.eos_id(), 1);
  EXPECT_EQ(tokenizer.id_of("<｜User｜>"), 4096);
  EXPECT_EQ(tokenizer.id_of("Ġ"), tokenizer.encode(" ", false).at(0));
  EXPECT_EQ(tokenizer.id_of("no such token"), std::nullopt);
  EXPECT_TRUE(tokenizer.is_special(0));
  EXPECT_FALSE(tokenizer.is_special(4096));
  EXPECT_EQ(tokenizer.decode(std::vector{0, 4096, -1, 4098, INT32_MAX, INT32_MIN}, true), "<｜User｜>");
}

}  // namespace
}  // namespace plait
