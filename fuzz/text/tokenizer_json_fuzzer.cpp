// tokenizer.json and, behind a zero byte, tokenizer_config.json. What is accepted encodes and decodes a fixed text.
// A file without "model" gets a small one, so that short inputs reach everything else.
#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>

#include "base/assert.h"
#include "base/json.h"
#include "text/byte_level.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

namespace {

constexpr std::string_view kText =
    "The  cat's 3 hats\n\n  cost 12345.67 (ab_cd)\t<s>x</s> naïve e\u0301 ½ ２０ 你好，世界・ひら ＡＢ \u00A0\u3000 "
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa! \xF0\x9F\x98\x80 \xC3\x28 \xE4\xBD";

boost::json::object small_model() {
  boost::json::object vocab;
  for (int byte = 0; byte < 256; ++byte) vocab[plait::written_of_bytes(std::string(1, static_cast<char>(byte)))] = byte;
  vocab["th"] = 256;
  vocab["aa"] = 257;
  vocab["aaaa"] = 258;
  return {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"t h", "a a", "aa aa"}}};
}

std::string with_model(std::string_view text) {
  const auto file = plait::json::parse_object(text);
  if (file.has_error() || file->contains("model")) return std::string(text);
  boost::json::object completed = *file;
  completed["model"] = small_model();
  if (!completed.contains("decoder")) completed["decoder"] = {{"type", "ByteLevel"}};
  return boost::json::serialize(completed);
}

void use(const plait::Tokenizer& tokenizer) {
  for (const bool special : {false, true}) {
    const std::vector<int32_t> ids = tokenizer.encode(kText, special);
    for (const int32_t id : ids) PLAIT_ASSERT(id >= 0 && id < tokenizer.vocab_size(), "ids lie in the vocabulary");
    PLAIT_ASSERT(ids == tokenizer.encode(kText, special), "the same text has the same ids");
    const std::string text = tokenizer.decode(ids, special);
    PLAIT_ASSERT(plait::is_utf8(text), "decoded text is UTF-8");
    plait::StreamingDetokenizer stream(&tokenizer, {}, special, false);
    std::string streamed = stream.push(ids);
    streamed += stream.finish();
    PLAIT_ASSERT(streamed == text, "streaming gives the same text");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t border = std::min(input.find('\0'), input.size());
  const auto tokenizer =
      plait::Tokenizer::parse(with_model(input.substr(0, border)), input.substr(std::min(border + 1, input.size())));
  if (tokenizer.has_error()) {
    PLAIT_ASSERT(!tokenizer.error().message.empty(), "an error says what is wrong");
    return 0;
  }
  use(*tokenizer);
  return 0;
}
