#include "text/detokenizer.h"

#include "text/utf8.h"

namespace plait {
namespace {

// For each length of a prefix of `text`: the longest shorter prefix that it ends with (Knuth, Morris and Pratt).
std::vector<uint32_t> fallbacks(std::string_view text) {
  std::vector<uint32_t> fallback(text.size() + 1, 0);
  for (size_t i = 1, k = 0; i < text.size(); ++i) {
    while (k > 0 && text[i] != text[k]) k = fallback[k];
    if (text[i] == text[k]) ++k;
    fallback[i + 1] = static_cast<uint32_t>(k);
  }
  return fallback;
}

}  // namespace

StreamingDetokenizer::StreamingDetokenizer(const Tokenizer* tokenizer, std::vector<std::string> stop_strings,
                                           bool skip_special_tokens, bool include_stop)
    : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens), include_stop_(include_stop) {
  for (const std::string& written : stop_strings) {
    std::string text = repair_utf8(written);  // as the text will be
    if (text.empty()) continue;
    std::vector<uint32_t> fallback = fallbacks(text);
    stop_strings_.push_back({std::move(text), std::move(fallback)});
  }
}

std::string StreamingDetokenizer::push(std::span<const int32_t> ids) {
  std::string certain;
  for (const int32_t id : ids) {
    if (matched_stop_) break;
    ++tokens_used_;
    incomplete_ += tokenizer_->token_bytes(id, skip_special_tokens_);
    certain += release(take_utf8(incomplete_));
  }
  return certain;
}

std::string StreamingDetokenizer::finish() {
  if (matched_stop_) return {};
  std::string rest = release(repair_utf8(std::exchange(incomplete_, {})));
  return rest + std::exchange(held_, {});
}

// Moves every stop string on by one byte of the text; the longest one that this completes.
const StreamingDetokenizer::StopString* StreamingDetokenizer::advance(char byte) {
  const StopString* complete = nullptr;
  for (StopString& stop : stop_strings_) {
    while (stop.matched > 0 && stop.text[stop.matched] != byte) stop.matched = stop.fallback[stop.matched];
    if (stop.text[stop.matched] == byte) ++stop.matched;
    if (stop.matched == stop.text.size() && (!complete || stop.text.size() > complete->text.size())) complete = &stop;
  }
  return complete;
}

// Adds whole characters to the text; returns what no stop string can take back any more.
std::string StreamingDetokenizer::release(std::string_view fresh) {
  if (stop_strings_.empty()) return std::string(fresh);
  for (const char byte : fresh) {
    held_ += byte;
    const StopString* complete = advance(byte);
    if (!complete) continue;
    matched_stop_ = complete->text;
    if (!include_stop_) held_.resize(held_.size() - complete->text.size());
    return std::exchange(held_, {});
  }
  size_t held = 0;
  for (const StopString& stop : stop_strings_) held = std::max<size_t>(held, stop.matched);
  std::string certain = held_.substr(0, held_.size() - held);
  held_.erase(0, certain.size());
  return certain;
}

}  // namespace plait
