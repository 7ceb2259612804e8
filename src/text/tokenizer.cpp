#include "text/tokenizer.h"

#include <fstream>
#include <mutex>

#include "base/json.h"
#include "text/located.h"
#include "text/long_text.h"
#include "text/tokenizer_parts.h"
#include "text/utf8.h"

namespace plait {
namespace {

// The memory that a longer text needed is not kept for later ones.
constexpr size_t kLongText_bytes = 1 << 20;

// Everything that one encode() needs and a later one can use again.
struct Scratch {
  PreTokenizerScratch pre_tokenizer;
  BpeScratch bpe;
  std::vector<std::string_view> parts;
  std::vector<AddedTokenMatcher::Piece> pieces, normalized_pieces;
};

class ScratchPool {
 public:
  std::unique_ptr<Scratch> take() {
    {
      const std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        auto scratch = std::move(free_.back());
        free_.pop_back();
        return scratch;
      }
    }
    return std::make_unique<Scratch>();
  }
  void give_back(std::unique_ptr<Scratch> scratch) {
    const std::lock_guard lock(mutex_);
    if (free_.size() < kKept) free_.push_back(std::move(scratch));
  }

 private:
  static constexpr size_t kKept = 16;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Scratch>> free_;
};

std::vector<AddedToken> select(const std::vector<AddedToken>& tokens, bool normalized) {
  std::vector<AddedToken> selected;
  for (const AddedToken& token : tokens) {
    if (token.normalized == normalized) selected.push_back(token);
  }
  return selected;
}

// Tokens that are looked for in normalised text are themselves normalised.
std::vector<AddedToken> normalized_tokens(const TokenizerParts& parts) {
  std::vector<AddedToken> tokens = select(parts.added_tokens, true);
  for (AddedToken& token : tokens) token.content = normalize(token.content, parts.normalizer);
  std::erase_if(tokens, [](const AddedToken& token) { return token.content.empty(); });
  return tokens;
}

bool is_file(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::is_regular_file(path, error);
}

Result<std::string> read_text_file(const std::filesystem::path& path) {
  std::error_code error;
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error) return io_error(fmt::format("cannot read {}", path.string()), error.value());
  if (size > kMaxTokenizerFileBytes) return corrupt(fmt::format("{}: larger than any tokenizer file", path.string()));
  std::string text(size, '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(text.data(), static_cast<std::streamsize>(size)))
    return io_error(fmt::format("cannot read {}", path.string()), errno);
  return text;
}

Result<std::string> read_if_exists(const std::filesystem::path& path) {
  return is_file(path) ? read_text_file(path) : std::string();
}

// tokenizer_config.json; an empty text counts as an empty object.
Result<boost::json::object> parse_config(std::string_view text) {
  if (text.empty()) return boost::json::object();
  Result<boost::json::object> config = json::parse_object(text);
  if (config.has_error()) return corrupt(std::move(config).error().message);
  return config;
}

}  // namespace

struct Tokenizer::State {
  explicit State(TokenizerParts read)
      : parts(std::move(read)), raw_matcher(select(parts.added_tokens, false)), matcher(normalized_tokens(parts)) {}

  void encode_part(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const;
  void encode_piece(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const;

  TokenizerParts parts;
  AddedTokenMatcher raw_matcher;  // of tokens that are looked for before the normaliser
  AddedTokenMatcher matcher;      // and behind it
  mutable ScratchPool pool;
};

Tokenizer::Tokenizer(std::unique_ptr<const State> state) : state_(std::move(state)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::load(const std::filesystem::path& folder) {
  const std::filesystem::path json_path = folder / "tokenizer.json", ranks_path = folder / "tiktoken.model";
  const std::filesystem::path config_path = folder / "tokenizer_config.json";
  PLAIT_ASSIGN_OR_RETURN(const std::string config_json, read_if_exists(config_path));
  PLAIT_ASSIGN_OR_RETURN(const boost::json::object config, located(config_path.string(), parse_config(config_json)));

  TokenizerParts parts;
  if (is_file(json_path)) {
    PLAIT_ASSIGN_OR_RETURN(const std::string text, read_text_file(json_path));
    PLAIT_ASSIGN_OR_RETURN(parts, located(json_path.string(), read_tokenizer_json(text)));
  } else if (is_file(ranks_path)) {
    PLAIT_ASSIGN_OR_RETURN(const std::string text, read_text_file(ranks_path));
    PLAIT_ASSIGN_OR_RETURN(parts, located(ranks_path.string(), read_tiktoken(text, config)));
  } else {
    return not_found(
        fmt::format("{} has neither tokenizer.json nor tiktoken.model; --skip-tokenizer-init serves token "
                    "ids without them",
                    folder.string()));
  }
  PLAIT_RETURN_IF_ERROR(located(config_path.string(), apply_tokenizer_config(config, parts)));
  if (parts.chat_template.empty()) {
    PLAIT_ASSIGN_OR_RETURN(parts.chat_template, read_if_exists(folder / "chat_template.jinja"));
  }
  return Tokenizer(std::make_unique<const State>(std::move(parts)));
}

Result<Tokenizer> Tokenizer::parse(std::string_view tokenizer_json, std::string_view tokenizer_config_json) {
  PLAIT_ASSIGN_OR_RETURN(const boost::json::object config,
                         located("tokenizer_config.json", parse_config(tokenizer_config_json)));
  PLAIT_ASSIGN_OR_RETURN(TokenizerParts parts, located("tokenizer.json", read_tokenizer_json(tokenizer_json)));
  PLAIT_RETURN_IF_ERROR(located("tokenizer_config.json", apply_tokenizer_config(config, parts)));
  return Tokenizer(std::make_unique<const State>(std::move(parts)));
}

// Ordinary text, normalised: no added tokens in it.
void Tokenizer::State::encode_piece(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const {
  parts.pre_tokenizer->split(text, scratch.pre_tokenizer,
                             [&](std::string_view word) { parts.bpe->encode(word, scratch.bpe, ids); });
}

void Tokenizer::State::encode_part(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const {
  scratch.pieces.clear();
  raw_matcher.split(text, scratch.pieces);
  for (const AddedTokenMatcher::Piece& piece : scratch.pieces) {
    if (piece.id >= 0) {
      ids.push_back(piece.id);
      continue;
    }
    const std::string normal = parts.normalizer.empty() ? std::string() : normalize(piece.text, parts.normalizer);
    scratch.normalized_pieces.clear();
    matcher.split(parts.normalizer.empty() ? piece.text : normal, scratch.normalized_pieces);
    for (const AddedTokenMatcher::Piece& inner : scratch.normalized_pieces) {
      if (inner.id >= 0) {
        ids.push_back(inner.id);
      } else {
        encode_piece(inner.text, scratch, ids);
      }
    }
  }
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  const TokenizerParts& parts = state_->parts;
  const std::string repaired = is_utf8(text) ? std::string() : repair_utf8(text);
  if (!repaired.empty()) text = repaired;

  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 8);
  if (add_special_tokens) ids = parts.prefix;
  std::unique_ptr<Scratch> scratch = state_->pool.take();
  scratch->parts.clear();
  if (parts.cut_long_text) {
    cut_long_text(text, scratch->parts);
  } else {
    scratch->parts.push_back(text);
  }
  for (size_t i = 0; i < scratch->parts.size(); ++i) state_->encode_part(scratch->parts[i], *scratch, ids);
  if (text.size() <= kLongText_bytes) state_->pool.give_back(std::move(scratch));
  if (add_special_tokens) ids.insert(ids.end(), parts.suffix.begin(), parts.suffix.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::string bytes;
  for (const int32_t id : ids) bytes += token_bytes(id, skip_special_tokens);
  return is_utf8(bytes) ? bytes : repair_utf8(bytes);
}

std::string_view Tokenizer::token_bytes(int32_t id, bool skip_special_tokens) const {
  return skip_special_tokens && is_special(id) ? std::string_view() : state_->parts.vocabulary->bytes(id);
}

std::optional<int32_t> Tokenizer::id_of(std::string_view token) const {
  return state_->parts.vocabulary->id_of_written(token);
}

bool Tokenizer::is_special(int32_t id) const {
  return state_->parts.vocabulary->is_special(id);
}

int32_t Tokenizer::vocab_size() const {
  return state_->parts.vocabulary->size();
}

std::optional<int32_t> Tokenizer::bos_id() const {
  return state_->parts.bos_id;
}

std::optional<int32_t> Tokenizer::eos_id() const {
  return state_->parts.eos_id;
}

const std::string& Tokenizer::chat_template() const {
  return state_->parts.chat_template;
}

}  // namespace plait
