// What a tokenizer is made of, as the readers of tokenizer.json and tiktoken.model hand it over.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <boost/json/object.hpp>

#include "base/error.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"
#include "text/vocabulary.h"

namespace plait {

// The largest published tokenizer.json has some 20 MB.
inline constexpr size_t kMaxTokenizerFileBytes = size_t{256} << 20;

struct TokenizerParts {
  std::unique_ptr<Vocabulary> vocabulary = std::make_unique<Vocabulary>();  // `bpe` points to it
  std::vector<AddedToken> added_tokens;
  std::vector<NormalForm> normalizer;
  std::optional<PreTokenizer> pre_tokenizer;
  std::optional<Bpe> bpe;
  std::vector<int32_t> prefix, suffix;  // ids that the post-processor puts around the text
  bool cut_long_text = false;           // as Kimi's tokenizer does, see long_text.h
  std::optional<int32_t> bos_id, eos_id;
  std::string chat_template;
};

// tokenizer.json. Errors name the field.
Result<TokenizerParts> read_tokenizer_json(std::string_view json);

// tiktoken.model: one "base64 rank" per line. Named special tokens come from the config's added_tokens_decoder.
Result<TokenizerParts> read_tiktoken(std::string_view ranks, const boost::json::object& config);

// tokenizer_config.json: BOS and EOS, add_bos_token, add_eos_token, chat_template.
Status apply_tokenizer_config(const boost::json::object& config, TokenizerParts& parts);

}  // namespace plait
