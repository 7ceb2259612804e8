// Cuts text into the pieces inside which tokens are merged, as tokenizer.json's pre_tokenizer describes.
//
// Const once made; any thread may cut, each with its own scratch.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/regex.h"
#include "text/split_scanners.h"

namespace plait {

enum class SplitBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

// One step: cuts every piece of the step before it where `regex` matches.
struct SplitStep {
  Regex regex;
  std::string pattern;  // as written; empty for a literal
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;
};

// The last step: where the text becomes bytes.
struct ByteLevelStep {
  bool prefix_space = false;       // in front of each piece that has none
  std::optional<SplitStep> words;  // then cut by GPT-2's regex
};

struct PreTokenizerScratch {
  struct Span {
    size_t begin, end;  // bytes
    bool matched = false;
  };
  RegexScratch regex;
  std::vector<Span> pieces, next, cut, words;
  std::string prefixed;
  int gave_up = 0;  // regexes, in this text
};

class PreTokenizer {
 public:
  PreTokenizer(std::vector<SplitStep> steps, ByteLevelStep byte_level);

  // Calls on_piece(std::string_view) for each piece of well-formed UTF-8, in order; none is empty. A regex that gives
  // up (see regex.h) leaves the rest of its piece whole.
  template <typename OnPiece>
  void split(std::string_view text, PreTokenizerScratch& scratch, OnPiece on_piece) const {
    if (scanner_) {
      for (size_t at = 0; at < text.size();) {
        const size_t end = scanner_(text, at);
        on_piece(text.substr(at, end - at));
        at = end;
      }
      return;
    }
    run_steps(text, scratch);
    for (const PreTokenizerScratch::Span& span : scratch.pieces) {
      const std::string_view piece = run_byte_level(text.substr(span.begin, span.end - span.begin), scratch);
      for (const auto& word : scratch.words) on_piece(piece.substr(word.begin, word.end - word.begin));
    }
  }

  // The specification that scanners are tested against: always by the regexes.
  void use_regexes_only() { scanner_ = nullptr; }
  bool has_scanner() const { return scanner_ != nullptr; }

 private:
  // Fills scratch.pieces.
  void run_steps(std::string_view text, PreTokenizerScratch& scratch) const;
  // Fills scratch.words; returns the text that they are of.
  std::string_view run_byte_level(std::string_view piece, PreTokenizerScratch& scratch) const;

  std::vector<SplitStep> steps_;
  ByteLevelStep byte_level_;
  PieceScanner scanner_ = nullptr;
};

}  // namespace plait
