#include <charconv>

#include "base/json.h"
#include "text/located.h"
#include "text/split_scanners.h"
#include "text/tokenizer_parts.h"
#include "text/utf8.h"

namespace plait {
namespace {

using json::Fields;

// Kimi-K2 keeps this many ids behind the merges for special tokens; those without a name in the config are reserved.
constexpr int32_t kSpecialSlots = 256;
// Finding all ways to cut a token in two takes the square of its length.
constexpr size_t kMaxTokenBytes = 1024;

std::optional<uint32_t> base64_digit(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  if (c == '+') return 62;
  if (c == '/') return 63;
  return std::nullopt;
}

std::optional<std::string> decode_base64(std::string_view text) {
  if (text.empty() || text.size() % 4 != 0) return std::nullopt;
  size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  std::string bytes;
  for (size_t at = 0; at < text.size(); at += 4) {
    uint32_t group = 0;
    const size_t digits = at + 4 == text.size() ? 4 - padding : 4;
    for (size_t i = 0; i < 4; ++i) {
      const std::optional<uint32_t> digit = i < digits ? base64_digit(text[at + i]) : 0;
      if (!digit) return std::nullopt;
      group = group << 6 | *digit;
    }
    for (size_t i = 0; i + 1 < digits; ++i) bytes += static_cast<char>(group >> (16 - 8 * i));
  }
  return bytes;
}

Status read_rank_line(std::string_view line, Vocabulary& vocabulary) {
  const size_t space = line.find(' ');
  std::optional<std::string> bytes =
      space == std::string_view::npos ? std::nullopt : decode_base64(line.substr(0, space));
  int64_t rank = -1;
  if (bytes) {
    const char* end = line.data() + line.size();
    const auto [read, error] = std::from_chars(line.data() + space + 1, end, rank);
    if (error != std::errc() || read != end) bytes.reset();
  }
  if (!bytes || bytes->size() > kMaxTokenBytes) return corrupt("a token in base64, a space and its rank are expected");
  return vocabulary.add_bytes(rank, *std::move(bytes));
}

Status read_ranks(std::string_view text, Vocabulary& vocabulary) {
  int64_t number = 0;
  while (!text.empty()) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!line.empty()) PLAIT_RETURN_IF_ERROR(located(fmt::format("line {}", number), read_rank_line(line, vocabulary)));
  }
  for (int byte = 0; byte < 256; ++byte) {
    const char one = static_cast<char>(byte);
    if (!vocabulary.id_of_bytes({&one, 1})) return corrupt(fmt::format("no token for byte 0x{:02X}", byte));
  }
  return {};
}

// Two tokens merge if their bytes together are a token, whose id is the rank: that makes every way to cut a token in
// two a merge.
MergeTable all_merges(const Vocabulary& vocabulary) {
  struct Entry {
    int32_t left, right, merged;
  };
  std::vector<Entry> entries;
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    const std::string_view token = vocabulary.bytes(id);
    for (size_t cut = 1; cut < token.size(); ++cut) {
      const std::optional<int32_t> left = vocabulary.id_of_bytes(token.substr(0, cut));
      if (!left) continue;
      if (const auto right = vocabulary.id_of_bytes(token.substr(cut))) entries.push_back({*left, *right, id});
    }
  }
  MergeTable table(entries.size());
  for (const Entry& entry : entries)
    table.insert(entry.left, entry.right, {static_cast<uint32_t>(entry.merged), entry.merged});
  return table;
}

Status add_special(int32_t id, std::string content, bool special, TokenizerParts& parts) {
  PLAIT_RETURN_IF_ERROR(parts.vocabulary->add_added(id, content, special));
  parts.added_tokens.push_back({.id = id, .content = std::move(content), .special = special});
  return {};
}

Status read_named_special(const Fields& named, std::string_view key, TokenizerParts& parts) {
  int32_t id = -1;
  const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
  if (error != std::errc() || end != key.data() + key.size()) return named.error(key, "is no id");
  PLAIT_ASSIGN_OR_RETURN(const std::optional<Fields> token, named.object(key));
  if (!token) return {};
  PLAIT_ASSIGN_OR_RETURN(std::string content, token->required_string("content"));
  if (content.empty() || content.size() > kMaxTokenBytes)
    return token->error("content", fmt::format("must have 1 to {} bytes", kMaxTokenBytes));
  PLAIT_ASSIGN_OR_RETURN(const std::optional<bool> special, token->boolean("special"));
  return located(named.path_of(key), add_special(id, std::move(content), special.value_or(true), parts));
}

Status read_specials(const Fields& config, TokenizerParts& parts) {
  const int32_t first = parts.vocabulary->size();
  PLAIT_ASSIGN_OR_RETURN(const std::optional<Fields> named, config.object("added_tokens_decoder"));
  if (named) {
    for (const auto& [key, value] : named->raw())
      PLAIT_RETURN_IF_ERROR(read_named_special(*named, {key.data(), key.size()}, parts));
  }
  for (int32_t id = first; id < first + kSpecialSlots; ++id) {
    if (parts.vocabulary->bytes(id).empty())
      PLAIT_RETURN_IF_ERROR(add_special(id, fmt::format("<|reserved_token_{}|>", id), true, parts));
  }
  return {};
}

}  // namespace

Result<TokenizerParts> read_tiktoken(std::string_view ranks, const boost::json::object& config) {
  TokenizerParts parts;
  PLAIT_RETURN_IF_ERROR(read_ranks(ranks, *parts.vocabulary));
  parts.bpe.emplace(parts.vocabulary.get(), all_merges(*parts.vocabulary), true);
  PLAIT_RETURN_IF_ERROR(read_specials(Fields(config, ErrorKind::kCorrupt), parts));
  PLAIT_ASSIGN_OR_RETURN(Regex regex, Regex::compile(kKimiK2Split));
  std::vector<SplitStep> steps;
  steps.push_back({std::move(regex), std::string(kKimiK2Split)});
  parts.pre_tokenizer.emplace(std::move(steps), ByteLevelStep{});
  parts.cut_long_text = true;
  return parts;
}

}  // namespace plait
