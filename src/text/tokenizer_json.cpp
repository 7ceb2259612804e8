#include <boost/json/array.hpp>

#include "text/byte_level.h"
#include "text/json_fields.h"
#include "text/tokenizer_parts.h"
#include "text/utf8.h"

namespace plait {
namespace {

namespace json = boost::json;

constexpr size_t kMaxAddedTokenBytes = 4096;
constexpr int kMaxSequenceDepth = 8;

// GPT-2's words, which ByteLevel cuts by if it says use_regex.
constexpr std::string_view kGpt2Words = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::string_view view(const json::string& text) {
  return {text.data(), text.size()};
}
std::string_view view(json::string_view text) {
  return {text.data(), text.size()};
}

Result<const json::object*> as_object(const json::value& value) {
  if (!value.is_object()) return corrupt("an object is expected");
  return &value.get_object();
}

// Calls visit(const object&) for each element of a "Sequence", or for the one object itself. Absent: not at all.
template <typename Visit>
Status for_each_in_sequence(const json::value* value, std::string_view list_name, Visit visit, int depth = 0) {
  if (!value) return {};
  if (depth > kMaxSequenceDepth) return unsupported("sequences are nested too deeply");
  PLAIT_ASSIGN_OR_RETURN(const json::object* object, as_object(*value));
  PLAIT_ASSIGN_OR_RETURN(const std::string_view type, string_field(*object, "type"));
  if (type != "Sequence") return located(type, visit(*object, type));
  PLAIT_ASSIGN_OR_RETURN(const json::array* items, array_field(*object, list_name));
  for (size_t i = 0; i < items->size(); ++i)
    PLAIT_RETURN_IF_ERROR(
        located(fmt::format("{}[{}]", list_name, i), for_each_in_sequence(&(*items)[i], list_name, visit, depth + 1)));
  return {};
}

// --- model ---

Status read_vocabulary(const json::object& model, Vocabulary& vocabulary) {
  PLAIT_ASSIGN_OR_RETURN(const json::object* vocab, object_field(model, "vocab"));
  for (const auto& [key, value] : *vocab) {
    const std::string_view written = view(key);
    if (!value.is_int64()) return corrupt(fmt::format("vocab: the id of \"{}\" is no integer", written));
    if (written.empty()) return corrupt("vocab: an empty token");
    std::optional<std::string> bytes = bytes_of_written(written);
    PLAIT_RETURN_IF_ERROR(located("vocab", bytes ? vocabulary.add_bytes(value.get_int64(), *std::move(bytes))
                                                 : vocabulary.add_literal(value.get_int64(), std::string(written))));
  }
  return {};
}

// "left right" or ["left", "right"]
Result<std::pair<std::string_view, std::string_view>> merge_sides(const json::value& value) {
  if (value.is_string()) {
    const std::string_view text = view(value.get_string());
    const size_t space = text.find(' ');
    if (space != std::string_view::npos && text.find(' ', space + 1) == std::string_view::npos)
      return std::pair{text.substr(0, space), text.substr(space + 1)};
  } else if (value.is_array()) {
    const json::array& sides = value.get_array();
    if (sides.size() == 2 && sides[0].is_string() && sides[1].is_string())
      return std::pair{view(sides[0].get_string()), view(sides[1].get_string())};
  }
  return corrupt("two tokens are expected, as \"left right\" or [\"left\", \"right\"]");
}

struct MergeEntry {
  int32_t left, right, id;
};

Result<MergeEntry> read_merge(const json::value& value, const Vocabulary& vocabulary) {
  PLAIT_ASSIGN_OR_RETURN(const auto sides, merge_sides(value));
  std::string both;
  std::array<int32_t, 2> ids{};
  for (const auto& [side, id] : {std::pair{sides.first, &ids[0]}, std::pair{sides.second, &ids[1]}}) {
    const std::optional<std::string> bytes = bytes_of_written(side);
    const std::optional<int32_t> known = bytes ? vocabulary.id_of_bytes(*bytes) : std::nullopt;
    if (!known) return corrupt(fmt::format("\"{}\" is not in the vocabulary", side));
    *id = *known;
    both += *bytes;
  }
  const std::optional<int32_t> merged = vocabulary.id_of_bytes(both);
  if (!merged) return corrupt(fmt::format("\"{}{}\" is not in the vocabulary", sides.first, sides.second));
  return MergeEntry{ids[0], ids[1], *merged};
}

Result<MergeTable> read_merges(const json::object& model, const Vocabulary& vocabulary) {
  PLAIT_ASSIGN_OR_RETURN(const json::array* merges, array_field(model, "merges"));
  MergeTable table(merges->size());
  for (size_t rank = 0; rank < merges->size(); ++rank) {
    PLAIT_ASSIGN_OR_RETURN(const MergeEntry merge,
                           located(fmt::format("merges[{}]", rank), read_merge((*merges)[rank], vocabulary)));
    table.insert(merge.left, merge.right, {static_cast<uint32_t>(rank), merge.id});
  }
  return table;
}

// A byte that text can contain must have a token, or text would be lost.
Status check_alphabet(const Vocabulary& vocabulary) {
  for (int byte = 0; byte < 0xF5; ++byte) {
    const char text = static_cast<char>(byte);
    if (byte == 0xC0 || byte == 0xC1 || vocabulary.id_of_bytes({&text, 1})) continue;
    return corrupt(fmt::format("vocab: no token for byte 0x{:02X} (\"{}\")", byte, written_of_bytes({&text, 1})));
  }
  return {};
}

Status refuse_model_options(const json::object& model) {
  if (const json::value* type = find_field(model, "type"); type && *type != "BPE")
    return unsupported("type: only BPE tokenizers are supported");
  for (const std::string_view option : {"unk_token", "continuing_subword_prefix", "end_of_word_suffix"}) {
    const json::value* value = find_field(model, option);
    if (value && *value != "") return unsupported(fmt::format("{}: not supported for byte-level BPE", option));
  }
  const json::value* dropout = find_field(model, "dropout");
  if (dropout && !(dropout->is_number() && dropout->to_number<double>() == 0))
    return unsupported("dropout: not supported");
  PLAIT_ASSIGN_OR_RETURN(const bool byte_fallback, bool_field(model, "byte_fallback", false));
  if (byte_fallback) return unsupported("byte_fallback: not supported for byte-level BPE");
  return {};
}

Status read_model(const json::object& model, TokenizerParts& parts) {
  PLAIT_RETURN_IF_ERROR(refuse_model_options(model));
  PLAIT_RETURN_IF_ERROR(read_vocabulary(model, *parts.vocabulary));
  PLAIT_RETURN_IF_ERROR(check_alphabet(*parts.vocabulary));
  PLAIT_ASSIGN_OR_RETURN(MergeTable merges, read_merges(model, *parts.vocabulary));
  PLAIT_ASSIGN_OR_RETURN(const bool ignore_merges, bool_field(model, "ignore_merges", false));
  parts.bpe.emplace(parts.vocabulary.get(), std::move(merges), ignore_merges);
  return {};
}

// --- added_tokens ---

Result<AddedToken> read_added_token(const json::value& value) {
  PLAIT_ASSIGN_OR_RETURN(const json::object* object, as_object(value));
  AddedToken token;
  PLAIT_ASSIGN_OR_RETURN(const int64_t id, integer_field(*object, "id"));
  if (id < 0 || id > Vocabulary::kMaxId) return corrupt(fmt::format("id {} is not in 0..{}", id, Vocabulary::kMaxId));
  token.id = static_cast<int32_t>(id);
  PLAIT_ASSIGN_OR_RETURN(const std::string_view content, string_field(*object, "content"));
  if (content.empty() || content.size() > kMaxAddedTokenBytes)
    return corrupt(fmt::format("content: 1 to {} bytes are expected", kMaxAddedTokenBytes));
  token.content = content;
  PLAIT_ASSIGN_OR_RETURN(token.special, bool_field(*object, "special", false));
  PLAIT_ASSIGN_OR_RETURN(token.normalized, bool_field(*object, "normalized", !token.special));
  PLAIT_ASSIGN_OR_RETURN(token.single_word, bool_field(*object, "single_word", false));
  PLAIT_ASSIGN_OR_RETURN(token.lstrip, bool_field(*object, "lstrip", false));
  PLAIT_ASSIGN_OR_RETURN(token.rstrip, bool_field(*object, "rstrip", false));
  return token;
}

Status read_added_tokens(const json::object& root, TokenizerParts& parts) {
  if (!find_field(root, "added_tokens")) return {};
  PLAIT_ASSIGN_OR_RETURN(const json::array* tokens, array_field(root, "added_tokens"));
  for (size_t i = 0; i < tokens->size(); ++i) {
    const std::string where = fmt::format("added_tokens[{}]", i);
    PLAIT_ASSIGN_OR_RETURN(AddedToken token, located(where, read_added_token((*tokens)[i])));
    PLAIT_RETURN_IF_ERROR(located(where, parts.vocabulary->add_added(token.id, token.content, token.special)));
    parts.added_tokens.push_back(std::move(token));
  }
  return {};
}

// --- normalizer ---

Status read_normalizer(const json::object& root, TokenizerParts& parts) {
  const auto read_one = [&](const json::object&, std::string_view type) -> Status {
    constexpr std::pair<std::string_view, NormalForm> kForms[] = {
        {"NFC", NormalForm::kNfc}, {"NFD", NormalForm::kNfd}, {"NFKC", NormalForm::kNfkc}, {"NFKD", NormalForm::kNfkd}};
    for (const auto& [name, form] : kForms) {
      if (type != name) continue;
      parts.normalizer.push_back(form);
      return {};
    }
    return unsupported("this normalizer is not supported");
  };
  return located("normalizer", for_each_in_sequence(find_field(root, "normalizer"), "normalizers", read_one));
}

// --- pre_tokenizer ---

Result<SplitBehavior> read_behavior(const json::object& split) {
  constexpr std::pair<std::string_view, SplitBehavior> kBehaviors[] = {
      {"Isolated", SplitBehavior::kIsolated},
      {"Removed", SplitBehavior::kRemoved},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous}};
  PLAIT_ASSIGN_OR_RETURN(const std::string_view word, string_field(split, "behavior"));
  for (const auto& [name, behavior] : kBehaviors) {
    if (word == name) return behavior;
  }
  return unsupported(fmt::format("behavior: \"{}\" is not supported", word));
}

Result<SplitStep> make_step(std::string_view pattern, SplitBehavior behavior) {
  PLAIT_ASSIGN_OR_RETURN(Regex regex, Regex::compile(pattern));
  return SplitStep{std::move(regex), std::string(pattern), behavior, false};
}

Result<SplitStep> read_split(const json::object& split) {
  PLAIT_ASSIGN_OR_RETURN(const json::object* pattern, object_field(split, "pattern"));
  PLAIT_ASSIGN_OR_RETURN(const SplitBehavior behavior, read_behavior(split));
  PLAIT_ASSIGN_OR_RETURN(const bool invert, bool_field(split, "invert", false));
  const json::value* literal = find_field(*pattern, "String");
  PLAIT_ASSIGN_OR_RETURN(const std::string_view text, string_field(*pattern, literal ? "String" : "Regex"));
  if (text.empty()) return corrupt("pattern: is empty");
  PLAIT_ASSIGN_OR_RETURN(Regex regex,
                         located("pattern", literal ? Regex::compile_literal(text) : Regex::compile(text)));
  return SplitStep{std::move(regex), literal ? std::string() : std::string(text), behavior, invert};
}

struct PreTokenizerSteps {
  std::vector<SplitStep> splits;
  std::optional<ByteLevelStep> byte_level;
};

Status read_pre_tokenizer_step(const json::object& object, std::string_view type, PreTokenizerSteps& steps) {
  if (steps.byte_level) return unsupported("a step behind ByteLevel, which would see bytes instead of text");
  if (type == "Split") {
    PLAIT_ASSIGN_OR_RETURN(SplitStep step, read_split(object));
    steps.splits.push_back(std::move(step));
    return {};
  }
  if (type == "Digits") {
    PLAIT_ASSIGN_OR_RETURN(const bool individual, bool_field(object, "individual_digits", false));
    PLAIT_ASSIGN_OR_RETURN(SplitStep step,
                           make_step(R"(\p{N})", individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous));
    steps.splits.push_back(std::move(step));
    return {};
  }
  if (type != "ByteLevel") return unsupported("this pre-tokenizer is not supported");
  ByteLevelStep last;
  PLAIT_ASSIGN_OR_RETURN(last.prefix_space, bool_field(object, "add_prefix_space", true));
  PLAIT_ASSIGN_OR_RETURN(const bool use_regex, bool_field(object, "use_regex", true));
  if (use_regex) {
    PLAIT_ASSIGN_OR_RETURN(last.words, make_step(kGpt2Words, SplitBehavior::kIsolated));
  }
  steps.byte_level = std::move(last);
  return {};
}

Status read_pre_tokenizer(const json::object& root, TokenizerParts& parts) {
  PreTokenizerSteps steps;
  const auto read_one = [&](const json::object& object, std::string_view type) {
    return read_pre_tokenizer_step(object, type, steps);
  };
  PLAIT_RETURN_IF_ERROR(
      located("pre_tokenizer", for_each_in_sequence(find_field(root, "pre_tokenizer"), "pretokenizers", read_one)));
  if (!steps.byte_level) return unsupported("pre_tokenizer: only byte-level tokenizers (with a ByteLevel step)");
  parts.pre_tokenizer.emplace(std::move(steps.splits), *std::move(steps.byte_level));
  return {};
}

// --- post_processor ---

// Ids of one "SpecialToken" of a template.
Status read_template_token(const json::object& processor, const json::object& token, const Vocabulary& vocabulary,
                           std::vector<int32_t>& ids) {
  PLAIT_ASSIGN_OR_RETURN(const std::string_view name, string_field(token, "id"));
  PLAIT_ASSIGN_OR_RETURN(const json::object* specials, object_field(processor, "special_tokens"));
  PLAIT_ASSIGN_OR_RETURN(const json::object* special, located("special_tokens", object_field(*specials, name)));
  PLAIT_ASSIGN_OR_RETURN(const json::array* values, located(name, array_field(*special, "ids")));
  for (const json::value& value : *values) {
    const bool known = value.is_int64() && value.get_int64() >= 0 && value.get_int64() < vocabulary.size() &&
                       !vocabulary.bytes(static_cast<int32_t>(value.get_int64())).empty();
    if (!known) return corrupt(fmt::format("special_tokens: \"{}\" has an id that is no token", name));
    ids.push_back(static_cast<int32_t>(value.get_int64()));
  }
  return {};
}

Status read_template(const json::object& processor, TokenizerParts& parts) {
  PLAIT_ASSIGN_OR_RETURN(const json::array* items, array_field(processor, "single"));
  std::vector<int32_t> before, after;
  bool seen_text = false;
  for (const json::value& item : *items) {
    PLAIT_ASSIGN_OR_RETURN(const json::object* object, located("single", as_object(item)));
    if (const json::value* token = find_field(*object, "SpecialToken"); token && token->is_object()) {
      PLAIT_RETURN_IF_ERROR(
          read_template_token(processor, token->get_object(), *parts.vocabulary, seen_text ? after : before));
    } else if (find_field(*object, "Sequence") && !seen_text) {
      seen_text = true;
    } else {
      return unsupported("single: special tokens around one sequence are expected");
    }
  }
  if (!seen_text) return unsupported("single: has no sequence");
  parts.prefix.insert(parts.prefix.begin(), before.begin(), before.end());
  parts.suffix.insert(parts.suffix.end(), after.begin(), after.end());
  return {};
}

Status read_post_processor(const json::object& root, TokenizerParts& parts) {
  const auto read_one = [&](const json::object& object, std::string_view type) -> Status {
    if (type == "TemplateProcessing") return read_template(object, parts);
    if (type == "ByteLevel") return {};  // concerns offsets only
    return unsupported("this post-processor is not supported");
  };
  return located("post_processor", for_each_in_sequence(find_field(root, "post_processor"), "processors", read_one));
}

Status check_decoder(const json::object& root) {
  PLAIT_ASSIGN_OR_RETURN(const json::object* decoder, object_field(root, "decoder"));
  PLAIT_ASSIGN_OR_RETURN(const std::string_view type, located("decoder", string_field(*decoder, "type")));
  if (type != "ByteLevel") return unsupported(fmt::format("decoder: {} is not supported, only ByteLevel", type));
  return {};
}

}  // namespace

Result<TokenizerParts> read_tokenizer_json(std::string_view text) {
  PLAIT_ASSIGN_OR_RETURN(const json::value value, parse_json_object(text, "the file"));
  const json::object& root = value.get_object();
  TokenizerParts parts;
  PLAIT_ASSIGN_OR_RETURN(const json::object* model, object_field(root, "model"));
  PLAIT_RETURN_IF_ERROR(located("model", read_model(*model, parts)));
  PLAIT_RETURN_IF_ERROR(read_added_tokens(root, parts));
  PLAIT_RETURN_IF_ERROR(read_normalizer(root, parts));
  PLAIT_RETURN_IF_ERROR(read_pre_tokenizer(root, parts));
  PLAIT_RETURN_IF_ERROR(read_post_processor(root, parts));
  PLAIT_RETURN_IF_ERROR(check_decoder(root));
  return parts;
}

}  // namespace plait
