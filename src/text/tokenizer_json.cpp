#include <boost/json/array.hpp>

#include "base/json.h"
#include "text/byte_level.h"
#include "text/located.h"
#include "text/tokenizer_parts.h"

namespace plait {
namespace {

using json::Fields;

constexpr json::Limits kLimits{.bytes = kMaxTokenizerFileBytes, .depth = 64};
constexpr size_t kMaxAddedTokenBytes = 4096;
constexpr int kMaxSequenceDepth = 8;

// GPT-2's words, which ByteLevel cuts by if it says use_regex.
constexpr std::string_view kGpt2Words = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::string_view view(boost::json::string_view text) {
  return {text.data(), text.size()};
}

Error not_supported(const Fields& fields, std::string_view key, std::string_view what) {
  return unsupported(fmt::format("{}: {}", fields.path_of(key), what));
}

// An object that is an element of an array or a field; `path` is its own.
Result<Fields> object_at(const boost::json::value& value, const std::string& path) {
  if (!value.is_object()) return corrupt(fmt::format("{}: must be an object, not {}", path, json::describe(value)));
  return Fields(value.get_object(), ErrorKind::kCorrupt, path + ".");
}

Result<Fields> required_object(const Fields& fields, std::string_view key) {
  PLAIT_ASSIGN_OR_RETURN(const std::optional<Fields> object, fields.object(key));
  if (!object) return fields.error(key, "is missing");
  return *object;
}

Result<const boost::json::array*> required_array(const Fields& fields, std::string_view key) {
  const boost::json::value* value = fields.find(key);
  if (!value || !value->is_array()) return fields.error(key, "must be an array");
  return &value->get_array();
}

Result<bool> boolean_or(const Fields& fields, std::string_view key, bool otherwise) {
  PLAIT_ASSIGN_OR_RETURN(const std::optional<bool> value, fields.boolean(key));
  return value.value_or(otherwise);
}

// Calls visit(fields, type) for each element of a "Sequence", or for the one object itself.
template <typename Visit>
Status for_each_in_sequence(const boost::json::value& value, const std::string& path, std::string_view list_name,
                            const Visit& visit, int depth = 0) {
  if (depth > kMaxSequenceDepth) return unsupported(fmt::format("{}: sequences are nested too deeply", path));
  PLAIT_ASSIGN_OR_RETURN(const Fields fields, object_at(value, path));
  PLAIT_ASSIGN_OR_RETURN(const std::string type, fields.required_string("type"));
  if (type != "Sequence") return visit(fields, type);
  PLAIT_ASSIGN_OR_RETURN(const boost::json::array* items, required_array(fields, list_name));
  for (size_t i = 0; i < items->size(); ++i)
    PLAIT_RETURN_IF_ERROR(for_each_in_sequence((*items)[i], fmt::format("{}[{}]", fields.path_of(list_name), i),
                                               list_name, visit, depth + 1));
  return {};
}

// The same for a field of the file; absent: nothing to visit.
template <typename Visit>
Status for_each_step(const Fields& root, std::string_view key, std::string_view list_name, const Visit& visit) {
  const boost::json::value* value = root.find(key);
  if (!value) return {};
  return for_each_in_sequence(*value, std::string(key), list_name, visit);
}

// --- model ---

Status read_vocabulary(const Fields& model, Vocabulary& vocabulary) {
  PLAIT_ASSIGN_OR_RETURN(const Fields vocab, required_object(model, "vocab"));
  for (const auto& [key, value] : vocab.raw()) {
    const std::string_view written = view(key);
    if (!value.is_int64()) return vocab.error(written, "the id must be an integer");
    if (written.empty()) return vocab.error(written, "an empty token");
    std::optional<std::string> bytes = bytes_of_written(written);
    PLAIT_RETURN_IF_ERROR(
        located("model.vocab", bytes ? vocabulary.add_bytes(value.get_int64(), *std::move(bytes))
                                     : vocabulary.add_literal(value.get_int64(), std::string(written))));
  }
  return {};
}

// "left right" or ["left", "right"]
Result<std::pair<std::string_view, std::string_view>> merge_sides(const boost::json::value& value) {
  if (value.is_string()) {
    const std::string_view text = view(value.get_string());
    const size_t space = text.find(' ');
    if (space != std::string_view::npos && text.find(' ', space + 1) == std::string_view::npos)
      return std::pair{text.substr(0, space), text.substr(space + 1)};
  } else if (value.is_array()) {
    const boost::json::array& sides = value.get_array();
    if (sides.size() == 2 && sides[0].is_string() && sides[1].is_string())
      return std::pair{view(sides[0].get_string()), view(sides[1].get_string())};
  }
  return corrupt("must be two tokens, as \"left right\" or [\"left\", \"right\"]");
}

struct MergeEntry {
  int32_t left, right, id;
};

Result<MergeEntry> read_merge(const boost::json::value& value, const Vocabulary& vocabulary) {
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

Result<MergeTable> read_merges(const Fields& model, const Vocabulary& vocabulary) {
  PLAIT_ASSIGN_OR_RETURN(const boost::json::array* merges, required_array(model, "merges"));
  MergeTable table(merges->size());
  for (size_t rank = 0; rank < merges->size(); ++rank) {
    Result<MergeEntry> merge = read_merge((*merges)[rank], vocabulary);
    if (merge.has_error()) return std::move(merge).error().within(fmt::format("model.merges[{}]", rank));
    table.insert(merge->left, merge->right, {static_cast<uint32_t>(rank), merge->id});
  }
  return table;
}

// A byte that text can contain must have a token, or text would be lost.
Status check_alphabet(const Vocabulary& vocabulary) {
  for (int byte = 0; byte < 0xF5; ++byte) {
    const char text = static_cast<char>(byte);
    if (byte == 0xC0 || byte == 0xC1 || vocabulary.id_of_bytes({&text, 1})) continue;
    return corrupt(fmt::format("model.vocab: no token for byte 0x{:02X} (\"{}\")", byte, written_of_bytes({&text, 1})));
  }
  return {};
}

Status refuse_model_options(const Fields& model) {
  PLAIT_ASSIGN_OR_RETURN(const std::optional<std::string> type, model.string("type"));
  if (type.value_or("BPE") != "BPE") return not_supported(model, "type", "only BPE tokenizers are supported");
  for (const std::string_view option : {"unk_token", "continuing_subword_prefix", "end_of_word_suffix"}) {
    PLAIT_ASSIGN_OR_RETURN(const std::optional<std::string> value, model.string(option));
    if (!value.value_or("").empty()) return not_supported(model, option, "not supported for byte-level BPE");
  }
  PLAIT_ASSIGN_OR_RETURN(const std::optional<double> dropout, model.number("dropout"));
  if (dropout.value_or(0) != 0) return not_supported(model, "dropout", "is for training only");
  PLAIT_ASSIGN_OR_RETURN(const bool byte_fallback, boolean_or(model, "byte_fallback", false));
  if (byte_fallback) return not_supported(model, "byte_fallback", "not supported for byte-level BPE");
  return {};
}

Status read_model(const Fields& root, TokenizerParts& parts) {
  PLAIT_ASSIGN_OR_RETURN(const Fields model, required_object(root, "model"));
  PLAIT_RETURN_IF_ERROR(refuse_model_options(model));
  PLAIT_RETURN_IF_ERROR(read_vocabulary(model, *parts.vocabulary));
  PLAIT_RETURN_IF_ERROR(check_alphabet(*parts.vocabulary));
  PLAIT_ASSIGN_OR_RETURN(MergeTable merges, read_merges(model, *parts.vocabulary));
  PLAIT_ASSIGN_OR_RETURN(const bool ignore_merges, boolean_or(model, "ignore_merges", false));
  parts.bpe.emplace(parts.vocabulary.get(), std::move(merges), ignore_merges);
  return {};
}

// --- added_tokens ---

Result<AddedToken> read_added_token(const Fields& fields) {
  AddedToken token;
  PLAIT_ASSIGN_OR_RETURN(const int64_t id, fields.required_integer("id", {0, Vocabulary::kMaxId}));
  token.id = static_cast<int32_t>(id);
  PLAIT_ASSIGN_OR_RETURN(token.content, fields.required_string("content"));
  if (token.content.empty() || token.content.size() > kMaxAddedTokenBytes)
    return fields.error("content", fmt::format("must have 1 to {} bytes", kMaxAddedTokenBytes));
  PLAIT_ASSIGN_OR_RETURN(token.special, boolean_or(fields, "special", false));
  PLAIT_ASSIGN_OR_RETURN(token.normalized, boolean_or(fields, "normalized", !token.special));
  PLAIT_ASSIGN_OR_RETURN(token.single_word, boolean_or(fields, "single_word", false));
  PLAIT_ASSIGN_OR_RETURN(token.lstrip, boolean_or(fields, "lstrip", false));
  PLAIT_ASSIGN_OR_RETURN(token.rstrip, boolean_or(fields, "rstrip", false));
  return token;
}

Status read_added_tokens(const Fields& root, TokenizerParts& parts) {
  if (!root.has("added_tokens")) return {};
  PLAIT_ASSIGN_OR_RETURN(const boost::json::array* tokens, required_array(root, "added_tokens"));
  for (size_t i = 0; i < tokens->size(); ++i) {
    const std::string path = fmt::format("added_tokens[{}]", i);
    PLAIT_ASSIGN_OR_RETURN(const Fields fields, object_at((*tokens)[i], path));
    PLAIT_ASSIGN_OR_RETURN(AddedToken token, read_added_token(fields));
    PLAIT_RETURN_IF_ERROR(located(path, parts.vocabulary->add_added(token.id, token.content, token.special)));
    parts.added_tokens.push_back(std::move(token));
  }
  return {};
}

// --- normalizer ---

Status read_normalizer(const Fields& root, TokenizerParts& parts) {
  constexpr std::pair<std::string_view, NormalForm> kForms[] = {
      {"NFC", NormalForm::kNfc}, {"NFD", NormalForm::kNfd}, {"NFKC", NormalForm::kNfkc}, {"NFKD", NormalForm::kNfkd}};
  return for_each_step(root, "normalizer", "normalizers", [&](const Fields& fields, std::string_view type) -> Status {
    for (const auto& [name, form] : kForms) {
      if (type != name) continue;
      parts.normalizer.push_back(form);
      return {};
    }
    return not_supported(fields, "type", fmt::format("the normalizer {} is not supported", type));
  });
}

// --- pre_tokenizer ---

Result<SplitBehavior> read_behavior(const Fields& split) {
  constexpr std::pair<std::string_view, SplitBehavior> kBehaviors[] = {
      {"Isolated", SplitBehavior::kIsolated},
      {"Removed", SplitBehavior::kRemoved},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous}};
  PLAIT_ASSIGN_OR_RETURN(const std::string word, split.required_string("behavior"));
  for (const auto& [name, behavior] : kBehaviors) {
    if (word == name) return behavior;
  }
  return not_supported(split, "behavior", fmt::format("\"{}\" is not supported", word));
}

Result<SplitStep> make_step(std::string_view pattern, SplitBehavior behavior) {
  PLAIT_ASSIGN_OR_RETURN(Regex regex, Regex::compile(pattern));
  return SplitStep{std::move(regex), std::string(pattern), behavior, false};
}

Result<SplitStep> read_split(const Fields& split) {
  PLAIT_ASSIGN_OR_RETURN(const Fields pattern, required_object(split, "pattern"));
  PLAIT_ASSIGN_OR_RETURN(const SplitBehavior behavior, read_behavior(split));
  PLAIT_ASSIGN_OR_RETURN(const bool invert, boolean_or(split, "invert", false));
  const bool literal = pattern.has("String");
  const std::string_view key = literal ? "String" : "Regex";
  PLAIT_ASSIGN_OR_RETURN(const std::string text, pattern.required_string(key));
  if (text.empty()) return pattern.error(key, "is empty");
  PLAIT_ASSIGN_OR_RETURN(Regex regex,
                         located(pattern.path_of(key), literal ? Regex::compile_literal(text) : Regex::compile(text)));
  return SplitStep{std::move(regex), literal ? std::string() : text, behavior, invert};
}

struct PreTokenizerSteps {
  std::vector<SplitStep> splits;
  std::optional<ByteLevelStep> byte_level;
};

Status read_pre_tokenizer_step(const Fields& fields, std::string_view type, PreTokenizerSteps& steps) {
  if (steps.byte_level)
    return not_supported(fields, "type", "a step behind ByteLevel, which would see bytes instead of text");
  if (type == "Split") {
    PLAIT_ASSIGN_OR_RETURN(SplitStep step, read_split(fields));
    steps.splits.push_back(std::move(step));
    return {};
  }
  if (type == "Digits") {
    PLAIT_ASSIGN_OR_RETURN(const bool individual, boolean_or(fields, "individual_digits", false));
    PLAIT_ASSIGN_OR_RETURN(SplitStep step,
                           make_step(R"(\p{N})", individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous));
    steps.splits.push_back(std::move(step));
    return {};
  }
  if (type != "ByteLevel")
    return not_supported(fields, "type", fmt::format("the pre-tokenizer {} is not supported", type));
  ByteLevelStep last;
  PLAIT_ASSIGN_OR_RETURN(last.prefix_space, boolean_or(fields, "add_prefix_space", true));
  PLAIT_ASSIGN_OR_RETURN(const bool use_regex, boolean_or(fields, "use_regex", true));
  if (use_regex) {
    PLAIT_ASSIGN_OR_RETURN(last.words, make_step(kGpt2Words, SplitBehavior::kIsolated));
  }
  steps.byte_level = std::move(last);
  return {};
}

Status read_pre_tokenizer(const Fields& root, TokenizerParts& parts) {
  PreTokenizerSteps steps;
  PLAIT_RETURN_IF_ERROR(for_each_step(root, "pre_tokenizer", "pretokenizers", [&](const Fields& fields, auto type) {
    return read_pre_tokenizer_step(fields, type, steps);
  }));
  if (!steps.byte_level)
    return not_supported(root, "pre_tokenizer", "only byte-level tokenizers are supported (a ByteLevel step)");
  parts.pre_tokenizer.emplace(std::move(steps.splits), *std::move(steps.byte_level));
  return {};
}

// --- post_processor ---

// Ids of one "SpecialToken" of a template.
Status read_template_token(const Fields& processor, const Fields& token, const Vocabulary& vocabulary,
                           std::vector<int32_t>& ids) {
  PLAIT_ASSIGN_OR_RETURN(const std::string name, token.required_string("id"));
  PLAIT_ASSIGN_OR_RETURN(const Fields specials, required_object(processor, "special_tokens"));
  PLAIT_ASSIGN_OR_RETURN(const Fields special, required_object(specials, name));
  PLAIT_ASSIGN_OR_RETURN(const auto values, special.integers("ids", {0, Vocabulary::kMaxId}));
  if (!values) return special.error("ids", "is missing");
  for (const int64_t value : *values) {
    const auto id = static_cast<int32_t>(value);
    if (vocabulary.bytes(id).empty()) return special.error("ids", fmt::format("{} is no token", id));
    ids.push_back(id);
  }
  return {};
}

Status read_template(const Fields& processor, TokenizerParts& parts) {
  PLAIT_ASSIGN_OR_RETURN(const boost::json::array* items, required_array(processor, "single"));
  std::vector<int32_t> before, after;
  bool seen_text = false;
  for (const boost::json::value& value : *items) {
    PLAIT_ASSIGN_OR_RETURN(const Fields item, object_at(value, processor.path_of("single")));
    PLAIT_ASSIGN_OR_RETURN(const std::optional<Fields> token, item.object("SpecialToken"));
    if (token) {
      PLAIT_RETURN_IF_ERROR(read_template_token(processor, *token, *parts.vocabulary, seen_text ? after : before));
    } else if (item.has("Sequence") && !seen_text) {
      seen_text = true;
    } else {
      return not_supported(processor, "single", "must be special tokens around one sequence");
    }
  }
  if (!seen_text) return not_supported(processor, "single", "has no sequence");
  parts.prefix.insert(parts.prefix.begin(), before.begin(), before.end());
  parts.suffix.insert(parts.suffix.end(), after.begin(), after.end());
  return {};
}

Status read_post_processor(const Fields& root, TokenizerParts& parts) {
  const auto read_one = [&](const Fields& fields, std::string_view type) -> Status {
    if (type == "TemplateProcessing") return read_template(fields, parts);
    if (type == "ByteLevel") return {};  // concerns offsets only
    return not_supported(fields, "type", fmt::format("the post-processor {} is not supported", type));
  };
  return for_each_step(root, "post_processor", "processors", read_one);
}

Status check_decoder(const Fields& root) {
  PLAIT_ASSIGN_OR_RETURN(const Fields decoder, required_object(root, "decoder"));
  PLAIT_ASSIGN_OR_RETURN(const std::string type, decoder.required_string("type"));
  if (type != "ByteLevel")
    return not_supported(decoder, "type", fmt::format("the decoder {} is not supported, only ByteLevel", type));
  return {};
}

}  // namespace

Result<TokenizerParts> read_tokenizer_json(std::string_view text) {
  Result<boost::json::object> object = json::parse_object(text, kLimits);
  if (object.has_error()) return corrupt(std::move(object).error().message);
  const Fields root(*object, ErrorKind::kCorrupt);
  TokenizerParts parts;
  PLAIT_RETURN_IF_ERROR(read_model(root, parts));
  PLAIT_RETURN_IF_ERROR(read_added_tokens(root, parts));
  PLAIT_RETURN_IF_ERROR(read_normalizer(root, parts));
  PLAIT_RETURN_IF_ERROR(read_pre_tokenizer(root, parts));
  PLAIT_RETURN_IF_ERROR(read_post_processor(root, parts));
  PLAIT_RETURN_IF_ERROR(check_decoder(root));
  return parts;
}

}  // namespace plait
