#include "text/pre_tokenizer.h"

#include "base/log.h"
#include "text/character_class.h"
#include "text/utf8.h"

namespace plait {
namespace {

using Span = PreTokenizerScratch::Span;

// Each costs milliseconds; a text on which that happens again and again is cut no more.
constexpr int kMaxGaveUp = 16;

void warn_gave_up(std::string_view pattern) {
  static std::atomic<bool> warned = false;
  if (!warned.exchange(true))
    log::warning("tokenizer: the regex \"{}\" backtracks too much on some text, which is left uncut from there on",
                 pattern.substr(0, 200));
}

// Covers `text` with spans that match and spans that do not, in scratch.cut. Empty matches cut, too.
void find_matches(std::string_view text, const SplitStep& step, PreTokenizerScratch& scratch) {
  std::vector<Span>& spans = scratch.cut;
  spans.clear();
  size_t done = 0, from = 0;
  std::optional<size_t> last_end;
  while (from <= text.size() && scratch.gave_up < kMaxGaveUp) {
    const RegexMatch match = step.regex.find(text, from, scratch.regex);
    if (match.outcome == RegexOutcome::kGaveUp) {
      ++scratch.gave_up;
      warn_gave_up(step.pattern);
    }
    if (match.outcome != RegexOutcome::kFound) break;
    // an empty match right behind another one is none
    if (match.begin == match.end && last_end == match.end) {
      if (match.end == text.size()) break;
      from = match.end;
      next_character(text, from);
      continue;
    }
    if (done < match.begin) spans.push_back({done, match.begin, step.invert});
    spans.push_back({match.begin, match.end, !step.invert});
    last_end = done = from = match.end;
  }
  if (done < text.size()) spans.push_back({done, text.size(), step.invert});
}

// Joins neighbours as the behaviour says, in place.
void apply_behavior(SplitBehavior behavior, std::vector<Span>& spans) {
  const auto join = [&](auto joins) {
    size_t kept = 0;
    for (size_t i = 0; i < spans.size(); ++i) {
      if (i > 0 && joins(spans[i - 1], spans[i])) {
        spans[kept - 1].end = spans[i].end;
      } else {
        spans[kept++] = spans[i];
      }
    }
    spans.resize(kept);
  };
  switch (behavior) {
    case SplitBehavior::kIsolated:
      return;
    case SplitBehavior::kRemoved:
      std::erase_if(spans, [](const Span& span) { return span.matched; });
      return;
    case SplitBehavior::kContiguous:
      return join([](const Span& a, const Span& b) { return a.matched == b.matched; });
    case SplitBehavior::kMergedWithPrevious:
      return join([](const Span& a, const Span& b) { return b.matched && !a.matched; });
    case SplitBehavior::kMergedWithNext:
      return join([](const Span& a, const Span& b) { return a.matched && !b.matched; });
  }
}

void split_piece(std::string_view text, const SplitStep& step, PreTokenizerScratch& scratch) {
  find_matches(text, step, scratch);
  apply_behavior(step.behavior, scratch.cut);
  std::erase_if(scratch.cut, [](const Span& span) { return span.begin == span.end; });
}

PieceScanner scanner_for(const std::vector<SplitStep>& steps, const ByteLevelStep& byte_level) {
  if (byte_level.prefix_space || byte_level.words) return nullptr;
  std::vector<std::string_view> patterns;
  for (const SplitStep& step : steps) {
    if (step.behavior != SplitBehavior::kIsolated) return nullptr;
    patterns.push_back(step.pattern);
  }
  return find_scanner(patterns);
}

}  // namespace

PreTokenizer::PreTokenizer(std::vector<SplitStep> steps, ByteLevelStep byte_level)
    : steps_(std::move(steps)), byte_level_(std::move(byte_level)), scanner_(scanner_for(steps_, byte_level_)) {
  if (scanner_) character_classes();  // made now, not in the first request
}

void PreTokenizer::run_steps(std::string_view text, PreTokenizerScratch& scratch) const {
  scratch.gave_up = 0;
  scratch.pieces.assign(1, {0, text.size()});
  for (const SplitStep& step : steps_) {
    scratch.next.clear();
    for (const Span& piece : scratch.pieces) {
      split_piece(text.substr(piece.begin, piece.end - piece.begin), step, scratch);
      for (const Span& cut : scratch.cut) scratch.next.push_back({piece.begin + cut.begin, piece.begin + cut.end});
    }
    scratch.pieces.swap(scratch.next);
  }
}

std::string_view PreTokenizer::run_byte_level(std::string_view piece, PreTokenizerScratch& scratch) const {
  if (byte_level_.prefix_space && !piece.starts_with(' ')) {
    scratch.prefixed.assign(1, ' ').append(piece);
    piece = scratch.prefixed;
  }
  if (byte_level_.words) {
    split_piece(piece, *byte_level_.words, scratch);
    scratch.words.swap(scratch.cut);
  } else {
    scratch.words.assign(1, {0, piece.size()});
  }
  return piece;
}

}  // namespace plait
