// Tokens that are found in the text before it is split and merged: special tokens and their like.
//
// Const once made; any thread may search.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/regex.h"

namespace plait {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;      // skip_special_tokens leaves it out
  bool normalized = false;   // is looked for after the normaliser
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // takes the blanks before it
  bool rstrip = false;       // takes the blanks behind it
};

class AddedTokenMatcher {
 public:
  explicit AddedTokenMatcher(std::span<const AddedToken> tokens);

  struct Piece {
    std::string_view text;
    int32_t id = -1;  // of the added token; -1: ordinary text
  };
  // Cuts well-formed UTF-8 at the tokens: from the left, the longest token at each place.
  void split(std::string_view text, std::vector<Piece>& pieces) const;
  bool empty() const { return tokens_.empty(); }

 private:
  struct Match {
    size_t begin = 0, end = 0;
    const AddedToken* token = nullptr;
  };
  Match find(std::string_view text, size_t from) const;
  size_t next_candidate(std::string_view text, size_t from) const;

  std::vector<AddedToken> tokens_;
  // A trie over the bytes of the tokens.
  std::unordered_map<uint64_t, uint32_t> edges_;  // node << 8 | byte -> node
  std::vector<int32_t> token_at_;                 // node -> index in tokens_, -1: none ends here
  std::array<bool, 256> begins_{};
  std::optional<char> only_begin_;
};

}  // namespace plait
