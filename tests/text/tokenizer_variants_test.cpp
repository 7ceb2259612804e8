// Small tokenizers that use each feature of tokenizer.json, against the ids and texts that the reference library
// (tokenizers 0.23) gave.
#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value_to.hpp>

#include "tests/text/test_data.h"

namespace plait {
namespace {

using boost::json::value_to;

// The file's common model with the variant's own fields.
std::string tokenizer_json(const boost::json::value& file, const boost::json::value& variant) {
  boost::json::object tokenizer;
  tokenizer["model"] = file.at("model");
  tokenizer["decoder"] = {{"type", "ByteLevel"}};
  for (const auto& [key, value] : variant.at("fields").as_object()) {
    if (key == "model") {
      for (const auto& [option, setting] : value.as_object()) tokenizer["model"].as_object()[option] = setting;
    } else {
      tokenizer[key] = value;
    }
  }
  return boost::json::serialize(tokenizer);
}

TEST(TokenizerVariants, EqualTheReference) {
  const boost::json::value file = boost::json::parse(read_repository_file("tests/text/data/tokenizer_variants.json"));
  int variants = 0, texts = 0;
  for (const boost::json::value& variant : file.at("variants").as_array()) {
    SCOPED_TRACE(variant.at("name").as_string());
    const auto tokenizer = Tokenizer::parse(tokenizer_json(file, variant), "");
    ASSERT_TRUE(tokenizer.has_value()) << tokenizer.error().message;
    for (const boost::json::value& test : variant.at("cases").as_array()) {
      const auto text = value_to<std::string>(test.at("text"));
      const auto ids = value_to<std::vector<int32_t>>(test.at("ids"));
      EXPECT_EQ(tokenizer->encode(text, true), ids) << text;
      EXPECT_EQ(tokenizer->decode(ids, true), value_to<std::string>(test.at("decoded"))) << text;
      ++texts;
    }
    ++variants;
  }
  std::printf("%d texts with %d variants of tokenizers\n", texts, variants);
}

}  // namespace
}  // namespace plait
