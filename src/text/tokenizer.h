// Byte-level BPE as a checkpoint's tokenizer.json describes it: added tokens, a sequence of pre-tokenizer splits,
// merges, post-processor.
//
// Loaded once, then const: any thread may encode and decode.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace plait {

class Tokenizer {
 public:
  // Reads tokenizer.json and, where it exists, tokenizer_config.json (BOS and EOS tokens, add_bos_token); or, for Kimi,
  // tiktoken.model. kNotFound if the folder has none; kCorrupt names the field; kUnsupported names the feature (another
  // model than BPE, an unknown splitter).
  static Result<Tokenizer> load(const std::filesystem::path& folder);
  static Result<Tokenizer> parse(std::string_view tokenizer_json, std::string_view tokenizer_config_json);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // `text` is UTF-8; bytes that are not are encoded as U+FFFD, as the reference library does. With `add_special_tokens`
  // the post-processor runs (BOS in front). Special tokens written in the text become their ids.
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const;
  // Bytes of the ids; unknown ids give nothing. Incomplete UTF-8 becomes U+FFFD.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const;
  // The raw bytes of one token (maybe half a character); empty for unknown ids, and for special tokens if they are
  // skipped.
  std::string_view token_bytes(int32_t id, bool skip_special_tokens) const;

  std::optional<int32_t> id_of(std::string_view token) const;  // as written in the vocabulary: "<｜User｜>"
  bool is_special(int32_t id) const;
  int32_t vocab_size() const;  // highest id + 1, added tokens included
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  // The Jinja template of tokenizer_config.json, never run: only looked at to recognise the chat format.
  const std::string& chat_template() const;

 private:
  struct State;
  explicit Tokenizer(std::unique_ptr<const State> state);
  std::unique_ptr<const State> state_;
};

}  // namespace plait
