// Files that lie, and text that is none.
#include <filesystem>

#include <boost/json/serialize.hpp>
#include <gmock/gmock.h>

#include "tests/text/random_text.h"
#include "tests/text/small_tokenizer.h"
#include "tests/text/test_data.h"

namespace plait {
namespace {

using boost::json::array;
using boost::json::object;
using boost::json::value;

struct HostileFile {
  std::string what;
  std::function<void(object&)> change;
  std::string message;  // must contain this
};

object added(int64_t id, std::string content) {
  return {{"id", id}, {"content", std::move(content)}};
}
value pre_tokenizers(std::vector<value> steps) {
  return {{"type", "Sequence"}, {"pretokenizers", array(steps.begin(), steps.end())}};
}
value split_by(const std::string& regex) {
  return {{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}};
}
value nested_sequences(int depth) {
  value inner{{"type", "ByteLevel"}};
  for (int i = 0; i < depth; ++i) inner = pre_tokenizers({inner});
  return inner;
}
object& model(object& file) {
  return file["model"].as_object();
}
object& vocab(object& file) {
  return model(file)["vocab"].as_object();
}

const std::vector<HostileFile> kFiles = {
    {"no model", [](object& f) { f.erase("model"); }, "model: is missing"},
    {"a model that is a list", [](object& f) { f["model"] = array(); }, "model: must be an object"},
    {"another model", [](object& f) { model(f)["type"] = "Unigram"; }, "model.type: only BPE"},
    {"no vocab", [](object& f) { model(f).erase("vocab"); }, "model.vocab: is missing"},
    {"no merges", [](object& f) { model(f).erase("merges"); }, "model.merges: must be an array"},
    {"unk_token", [](object& f) { model(f)["unk_token"] = "<unk>"; }, "model.unk_token"},
    {"dropout", [](object& f) { model(f)["dropout"] = 0.1; }, "model.dropout"},
    {"byte_fallback", [](object& f) { model(f)["byte_fallback"] = true; }, "model.byte_fallback"},
    {"byte_fallback as a word", [](object& f) { model(f)["byte_fallback"] = "yes"; }, "model.byte_fallback"},
    {"a prefix", [](object& f) { model(f)["continuing_subword_prefix"] = "##"; }, "continuing_subword_prefix"},
    {"a suffix", [](object& f) { model(f)["end_of_word_suffix"] = "</w>"; }, "end_of_word_suffix"},
    {"a byte without token", [](object& f) { vocab(f).erase("A"); }, "no token for byte 0x41"},
    {"a negative id", [](object& f) { vocab(f)["xx"] = -1; }, "id -1"},
    {"a huge id", [](object& f) { vocab(f)["xx"] = int64_t{1} << 31; }, "id 2147483648"},
    {"an id above 2^63", [](object& f) { vocab(f)["xx"] = uint64_t{1} << 63; }, "vocab.xx: the id must be an integer"},
    {"a fractional id", [](object& f) { vocab(f)["xx"] = 1.5; }, "vocab.xx: the id must be an integer"},
    {"an id twice", [](object& f) { vocab(f)["xx"] = 65; }, "id 65 is given to both"},
    {"an empty token", [](object& f) { vocab(f)[""] = 300; }, "an empty token"},
    {"a merge of unknown tokens", [](object& f) { model(f)["merges"] = {"zz y"}; }, "model.merges[0]: \"zz\""},
    {"a merge to an unknown token", [](object& f) { model(f)["merges"] = {"z y"}; }, "\"zy\" is not in the vocabulary"},
    {"a merge of three", [](object& f) { model(f)["merges"] = {"a b c"}; }, "model.merges[0]: must be two tokens"},
    {"a merge of nothing", [](object& f) { model(f)["merges"] = {" "}; }, "model.merges[0]"},
    {"a merge that is a number", [](object& f) { model(f)["merges"] = {7}; }, "model.merges[0]"},
    {"a merge of one", [](object& f) { model(f)["merges"] = array{array{"a"}}; }, "model.merges[0]"},
    {"added tokens that are no list", [](object& f) { f["added_tokens"] = 1; }, "added_tokens: must be an array"},
    {"an added token without content",
     [](object& f) {
       f["added_tokens"] = array{object{{"id", 300}}};
     },
     "added_tokens[0].content: is missing"},
    {"an empty added token", [](object& f) { f["added_tokens"] = array{added(300, "")}; }, "added_tokens[0].content"},
    {"an endless added token", [](object& f) { f["added_tokens"] = array{added(300, std::string(5000, 'x'))}; },
     "added_tokens[0].content"},
    {"an added token with a negative id", [](object& f) { f["added_tokens"] = array{added(-5, "x")}; },
     "added_tokens[0].id"},
    {"an added token with another token's id", [](object& f) { f["added_tokens"] = array{added(65, "<x>")}; },
     "id 65 is given to both"},
    {"an added token with two ids",
     [](object& f) {
       f["added_tokens"] = array{added(300, "x<"), added(301, "x<")};
     },
     "added_tokens[1]"},
    {"another normalizer",
     [](object& f) {
       f["normalizer"] = {{"type", "Lowercase"}};
     },
     "normalizer.type: the normalizer Lowercase"},
    {"no pre-tokenizer", [](object& f) { f["pre_tokenizer"] = nullptr; }, "pre_tokenizer: only byte-level"},
    {"another pre-tokenizer",
     [](object& f) {
       f["pre_tokenizer"] = {{"type", "Metaspace"}};
     },
     "Metaspace"},
    {"a step behind ByteLevel",
     [](object& f) {
       f["pre_tokenizer"] = pre_tokenizers({{{"type", "ByteLevel"}}, split_by("a")});
     },
     "pre_tokenizer.pretokenizers[1].type: a step behind ByteLevel"},
    {"a regex that is none", [](object& f) { f["pre_tokenizer"] = pre_tokenizers({split_by("(a")}); },
     "pre_tokenizer.pretokenizers[0].pattern.Regex: regex \"(a\""},
    {"an empty regex", [](object& f) { f["pre_tokenizer"] = pre_tokenizers({split_by("")}); }, "is empty"},
    {"another behaviour",
     [](object& f) {
       f["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Shuffled"}};
     },
     "behavior: \"Shuffled\""},
    {"sequences in sequences", [](object& f) { f["pre_tokenizer"] = nested_sequences(12); }, "nested too deeply"},
    {"another post-processor",
     [](object& f) {
       f["post_processor"] = {{"type", "BertProcessing"}};
     },
     "post_processor.type: the post-processor BertProcessing"},
    {"a template with an id that is no token",
     [](object& f) {
       f["post_processor"] = {{"type", "TemplateProcessing"},
                              {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}},
                              {"special_tokens", {{"<s>", {{"ids", {999}}}}}}};
     },
     "special_tokens.<s>.ids: 999 is no token"},
    {"a template without text",
     [](object& f) {
       f["post_processor"] = {{"type", "TemplateProcessing"}, {"single", array()}, {"special_tokens", object()}};
     },
     "post_processor.single: has no sequence"},
    {"no decoder", [](object& f) { f.erase("decoder"); }, "decoder: is missing"},
    {"another decoder",
     [](object& f) {
       f["decoder"] = {{"type", "WordPiece"}};
     },
     "decoder.type: the decoder WordPiece"},
};

TEST(HostileTokenizer, FilesAreRefusedByName) {
  ASSERT_TRUE(Tokenizer::parse(boost::json::serialize(small_tokenizer()), "").has_value());
  for (const HostileFile& file : kFiles) {
    object tokenizer = small_tokenizer();
    file.change(tokenizer);
    const auto parsed = Tokenizer::parse(boost::json::serialize(tokenizer), "");
    ASSERT_TRUE(parsed.has_error()) << file.what;
    EXPECT_THAT(parsed.error().message, testing::HasSubstr(file.message)) << file.what;
    EXPECT_THAT(parsed.error().message, testing::StartsWith("tokenizer.json: ")) << file.what;
    EXPECT_TRUE(parsed.error().kind == ErrorKind::kCorrupt || parsed.error().kind == ErrorKind::kUnsupported)
        << file.what;
  }
  std::printf("%zu hostile files\n", kFiles.size());
}

TEST(HostileTokenizer, TextsThatAreNoJson) {
  const std::string deep(100'000, '[');
  for (const std::string& text : {std::string(), std::string("null"), std::string("[]"), std::string("{"), deep,
                                  "{\"model\":" + deep, std::string("\xFF\xFE"), std::string("{}{}")}) {
    const auto parsed = Tokenizer::parse(text, "");
    ASSERT_TRUE(parsed.has_error());
    EXPECT_EQ(parsed.error().kind, ErrorKind::kCorrupt);
  }
}

TEST(HostileTokenizer, ConfigsAreCheckedToo) {
  const std::string file = boost::json::serialize(small_tokenizer());
  const std::pair<std::string, std::string> cases[] = {
      {R"({"bos_token": "<no>"})", "bos_token: \"<no>\" is not in the vocabulary"},
      {R"({"bos_token": 7})", "bos_token"},
      {R"({"eos_token": {"text": "a"}})", "eos_token.content: is missing"},
      {R"({"add_bos_token": true})", "add_bos_token: is true"},
      {R"({"add_bos_token": 1, "bos_token": "a"})", "add_bos_token"},
      {R"({"chat_template": 1})", "chat_template"},
      {R"([])", "tokenizer_config.json"},
  };
  for (const auto& [config, message] : cases) {
    const auto parsed = Tokenizer::parse(file, config);
    ASSERT_TRUE(parsed.has_error()) << config;
    EXPECT_THAT(parsed.error().message, testing::HasSubstr(message));
  }
}

TEST(HostileTokenizer, MergesThatLookCyclicEnd) {
  object tokenizer = small_tokenizer();
  vocab(tokenizer)["ab"] = 256;
  vocab(tokenizer)["ba"] = 257;
  vocab(tokenizer)["aba"] = 258;
  model(tokenizer)["merges"] = {"a b", "b a", "ab a", "a ba", "a b", "a b"};  // the last of equal pairs counts
  const auto parsed = Tokenizer::parse(boost::json::serialize(tokenizer), "");
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message;
  const std::string text = "ababababab";
  EXPECT_EQ(parsed->decode(parsed->encode(text, false), false), text);
  EXPECT_EQ(parsed->encode("ab", false), std::vector<int32_t>{256});
  EXPECT_EQ(parsed->encode("bab", false), (std::vector<int32_t>{257, 'b'}));
}

TEST(Tokenizer, BosAndEosAsTheConfigSays) {
  object tokenizer = small_tokenizer();
  tokenizer["added_tokens"] = array{added(256, "<s>"), added(257, "</s>")};
  const std::string file = boost::json::serialize(tokenizer);
  const auto ids = [&](std::string_view config) { return Tokenizer::parse(file, config)->encode("a", true); };
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(ids(R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}})"), (Ids{'a'}));
  EXPECT_EQ(ids(R"({"bos_token": "<s>", "add_bos_token": true})"), (Ids{256, 'a'}));
  EXPECT_EQ(ids(R"({"bos_token": "<s>", "add_bos_token": false})"), (Ids{'a'}));
  EXPECT_EQ(ids(R"({"eos_token": "</s>", "add_eos_token": true})"), (Ids{'a', 257}));
}

TEST(Tokenizer, ChatTemplateFromEitherForm) {
  const std::string file = boost::json::serialize(small_tokenizer());
  EXPECT_EQ(Tokenizer::parse(file, R"({"chat_template": "x"})")->chat_template(), "x");
  EXPECT_EQ(Tokenizer::parse(file, R"({"chat_template": [{"name": "rag", "template": "r"},
                                       {"name": "default", "template": "d"}]})")
                ->chat_template(),
            "d");
}

TEST(Tokenizer, AnyTextComesBack) {
  const Tokenizer& tokenizer = demo_tokenizer();
  RandomText random(8);
  constexpr int kTexts = 30'000;
  for (int i = 0; i < kTexts; ++i) {
    const std::string text = random.text(40);
    ASSERT_EQ(tokenizer.decode(tokenizer.encode(text, false), false), text);
  }
  std::printf("%d texts\n", kTexts);
}

TEST(Tokenizer, AnyBytesAreEncodedAsTheirRepairedText) {
  const Tokenizer& tokenizer = demo_tokenizer();
  RandomText random(9);
  constexpr int kTexts = 30'000;
  for (int i = 0; i < kTexts; ++i) {
    const std::string bytes = random.bytes(30);
    const std::vector<int32_t> ids = tokenizer.encode(bytes, true);
    for (const int32_t id : ids) ASSERT_TRUE(id >= 0 && id < tokenizer.vocab_size());
    ASSERT_EQ(tokenizer.decode(ids, true), repair_utf8(bytes));
  }
  std::printf("%d byte strings\n", kTexts);
}

TEST(Tokenizer, LongRunsTakeLittleTime) {
  const Tokenizer& tokenizer = demo_tokenizer();
  for (const std::string& run : {std::string(" "), std::string("a"), std::string("\n"), std::string("!"),
                                 std::string("中"), std::string("<｜"), std::string("\u0301"), std::string("\0", 1)}) {
    std::string text;
    while (text.size() < 300'000) text += run;
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, false), false), text);
  }
}

TEST(Tokenizer, AFolderWithoutAnyIsNotFound) {
  const auto loaded = Tokenizer::load(std::filesystem::path(PLAIT_SOURCE_DIR) / "tests");
  ASSERT_TRUE(loaded.has_error());
  EXPECT_EQ(loaded.error().kind, ErrorKind::kNotFound);
  EXPECT_THAT(loaded.error().message, testing::HasSubstr("--skip-tokenizer-init"));
}

}  // namespace
}  // namespace plait
