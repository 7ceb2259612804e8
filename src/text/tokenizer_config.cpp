#include <boost/json/array.hpp>

#include "text/json_fields.h"
#include "text/tokenizer_parts.h"

namespace plait {
namespace {

namespace json = boost::json;

// "bos_token": "text", or an object with its "content"; absent or null: none.
Result<std::optional<int32_t>> token_field(const json::object& config, std::string_view key,
                                           const Vocabulary& vocabulary) {
  const json::value* value = find_field(config, key);
  if (!value) return std::optional<int32_t>();
  const json::object* object = value->if_object();
  PLAIT_ASSIGN_OR_RETURN(const std::string_view content,
                         object ? located(key, string_field(*object, "content")) : string_field(config, key));
  const std::optional<int32_t> id = vocabulary.id_of_written(content);
  if (!id) return corrupt(fmt::format("{}: \"{}\" is not in the vocabulary", key, content));
  return id;
}

// The library that trained the published models puts BOS and EOS as this file says, whatever tokenizer.json's
// post-processor does; without the flags the post-processor decides.
Status apply_flag(const json::object& config, std::string_view key, std::optional<int32_t> id, bool in_front,
                  std::vector<int32_t>& ids) {
  if (!find_field(config, key)) return {};
  PLAIT_ASSIGN_OR_RETURN(const bool wanted, bool_field(config, key, false));
  if (wanted && !id) return corrupt(fmt::format("{} is true, but the token is not named", key));
  if (!id) return {};
  std::erase(ids, *id);
  if (wanted) ids.insert(in_front ? ids.begin() : ids.end(), *id);
  return {};
}

// A string, or a list of {"name", "template"} of which "default" counts.
Result<std::string> template_field(const json::object& config) {
  const json::value* value = find_field(config, "chat_template");
  if (!value) return std::string();
  if (!value->is_array()) {
    PLAIT_ASSIGN_OR_RETURN(const std::string_view text, string_field(config, "chat_template"));
    return std::string(text);
  }
  for (const json::value& item : value->get_array()) {
    const json::object* object = item.if_object();
    const json::value* name = object ? find_field(*object, "name") : nullptr;
    if (!name || *name != "default") continue;
    PLAIT_ASSIGN_OR_RETURN(const std::string_view text, located("chat_template", string_field(*object, "template")));
    return std::string(text);
  }
  return std::string();
}

}  // namespace

Status apply_tokenizer_config(const json::object& config, TokenizerParts& parts) {
  PLAIT_ASSIGN_OR_RETURN(parts.bos_id, token_field(config, "bos_token", *parts.vocabulary));
  PLAIT_ASSIGN_OR_RETURN(parts.eos_id, token_field(config, "eos_token", *parts.vocabulary));
  PLAIT_RETURN_IF_ERROR(apply_flag(config, "add_bos_token", parts.bos_id, true, parts.prefix));
  PLAIT_RETURN_IF_ERROR(apply_flag(config, "add_eos_token", parts.eos_id, false, parts.suffix));
  PLAIT_ASSIGN_OR_RETURN(parts.chat_template, template_field(config));
  return {};
}

}  // namespace plait
