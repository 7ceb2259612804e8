#include <boost/json/array.hpp>

#include "base/json.h"
#include "text/tokenizer_parts.h"

namespace plait {
namespace {

using json::Fields;

// "bos_token": "text", or an object with its "content"; absent or null: none.
Result<std::optional<int32_t>> token_field(const Fields& config, std::string_view key, const Vocabulary& vocabulary) {
  const boost::json::value* value = config.find(key);
  if (!value) return std::optional<int32_t>();
  std::string content;
  if (value->is_object()) {
    PLAIT_ASSIGN_OR_RETURN(const std::optional<Fields> token, config.object(key));
    PLAIT_ASSIGN_OR_RETURN(content, token->required_string("content"));
  } else {
    PLAIT_ASSIGN_OR_RETURN(content, config.required_string(key));
  }
  const std::optional<int32_t> id = vocabulary.id_of_written(content);
  if (!id) return config.error(key, fmt::format("\"{}\" is not in the vocabulary", content));
  return id;
}

// The library that trained the published models puts BOS and EOS as this file says, whatever tokenizer.json's
// post-processor does; without the flags the post-processor decides.
Status apply_flag(const Fields& config, std::string_view key, std::optional<int32_t> id, bool in_front,
                  std::vector<int32_t>& ids) {
  PLAIT_ASSIGN_OR_RETURN(const std::optional<bool> wanted, config.boolean(key));
  if (!wanted) return {};
  if (*wanted && !id) return config.error(key, "is true, but the file does not name the token");
  if (!id) return {};
  std::erase(ids, *id);
  if (*wanted) ids.insert(in_front ? ids.begin() : ids.end(), *id);
  return {};
}

// A string, or a list of {"name", "template"} of which "default" counts.
Result<std::string> template_field(const Fields& config) {
  const boost::json::value* value = config.find("chat_template");
  if (!value) return std::string();
  if (!value->is_array()) return config.required_string("chat_template");
  for (const boost::json::value& item : value->get_array()) {
    if (!item.is_object()) return config.error("chat_template", "must be a text, or a list of objects");
    const Fields named(item.get_object(), ErrorKind::kCorrupt, "chat_template[].");
    PLAIT_ASSIGN_OR_RETURN(const std::string name, named.required_string("name"));
    if (name == "default") return named.required_string("template");
  }
  return std::string();
}

}  // namespace

Status apply_tokenizer_config(const boost::json::object& object, TokenizerParts& parts) {
  const Fields config(object, ErrorKind::kCorrupt);
  PLAIT_ASSIGN_OR_RETURN(parts.bos_id, token_field(config, "bos_token", *parts.vocabulary));
  PLAIT_ASSIGN_OR_RETURN(parts.eos_id, token_field(config, "eos_token", *parts.vocabulary));
  PLAIT_RETURN_IF_ERROR(apply_flag(config, "add_bos_token", parts.bos_id, true, parts.prefix));
  PLAIT_RETURN_IF_ERROR(apply_flag(config, "add_eos_token", parts.eos_id, false, parts.suffix));
  PLAIT_ASSIGN_OR_RETURN(parts.chat_template, template_field(config));
  return {};
}

}  // namespace plait
