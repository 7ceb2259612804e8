#include "text/added_tokens.h"

#include "text/character_class.h"
#include "text/utf8.h"

namespace plait {

AddedTokenMatcher::AddedTokenMatcher(std::span<const AddedToken> tokens) : tokens_(tokens.begin(), tokens.end()) {
  token_at_.push_back(-1);
  for (size_t i = 0; i < tokens_.size(); ++i) {
    uint32_t node = 0;
    for (const char c : tokens_[i].content) {
      const auto byte = static_cast<unsigned char>(c);
      const auto [edge, is_new] =
          edges_.try_emplace(uint64_t{node} << 8 | byte, static_cast<uint32_t>(token_at_.size()));
      if (is_new) token_at_.push_back(-1);
      node = edge->second;
    }
    token_at_[node] = static_cast<int32_t>(i);
    begins_[static_cast<unsigned char>(tokens_[i].content[0])] = true;
  }
  if (std::count(begins_.begin(), begins_.end(), true) == 1) only_begin_ = tokens_[0].content[0];
}

size_t AddedTokenMatcher::next_candidate(std::string_view text, size_t from) const {
  if (only_begin_) return text.find(*only_begin_, from);
  while (from < text.size() && !begins_[static_cast<unsigned char>(text[from])]) ++from;
  return from < text.size() ? from : std::string_view::npos;
}

AddedTokenMatcher::Match AddedTokenMatcher::find(std::string_view text, size_t from) const {
  for (size_t begin = next_candidate(text, from); begin != std::string_view::npos;
       begin = next_candidate(text, begin + 1)) {
    Match match;
    uint32_t node = 0;
    for (size_t end = begin; end < text.size();) {
      const auto edge = edges_.find(uint64_t{node} << 8 | static_cast<unsigned char>(text[end]));
      if (edge == edges_.end()) break;
      node = edge->second;
      ++end;
      if (token_at_[node] >= 0) match = {begin, end, &tokens_[token_at_[node]]};
    }
    if (match.token) return match;
  }
  return {};
}

namespace {

bool touches_word(std::string_view text, size_t begin, size_t end) {
  if (begin > 0) {
    size_t before = previous_character(text, begin);
    if (is_word_character(next_character(text, before))) return true;
  }
  return end < text.size() && is_word_character(next_character(text, end));
}

size_t skip_blanks(std::string_view text, size_t at) {
  while (at < text.size()) {
    size_t behind = at;
    if (!is_white_space(next_character(text, behind))) break;
    at = behind;
  }
  return at;
}

// Back to the first of the blanks that end at `at`, but not before `floor`.
size_t skip_blanks_back(std::string_view text, size_t at, size_t floor) {
  while (at > floor) {
    const size_t before = previous_character(text, at);
    size_t read = before;
    if (!is_white_space(next_character(text, read))) break;
    at = before;
  }
  return at;
}

}  // namespace

void AddedTokenMatcher::split(std::string_view text, std::vector<Piece>& pieces) const {
  size_t done = 0;
  size_t from = 0;
  while (!tokens_.empty()) {
    const Match match = find(text, from);
    if (!match.token) break;
    from = match.end;
    if (match.token->single_word && touches_word(text, match.begin, match.end)) continue;
    const size_t begin = match.token->lstrip ? skip_blanks_back(text, match.begin, done) : match.begin;
    const size_t end = match.token->rstrip ? skip_blanks(text, match.end) : match.end;
    if (done < begin) pieces.push_back({text.substr(done, begin - done)});
    pieces.push_back({{}, match.token->id});
    // a token of blanks inside the stripped ones still counts: the reference library searches on from match.end
    done = std::max(done, end);
  }
  if (done < text.size()) pieces.push_back({text.substr(done)});
}

}  // namespace plait
