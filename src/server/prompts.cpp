#include "server/prompts.h"

#include "server/request_fields.h"

namespace plait {
namespace {

namespace json = boost::json;

std::string_view expected(PromptForm form) {
  switch (form) {
    case PromptForm::kText:
      return "a string or an array of strings";
    case PromptForm::kIds:
      return "an array of token ids or an array of such arrays";
    case PromptForm::kEither:
      break;
  }
  return "a string, an array of strings, an array of token ids or an array of such arrays";
}

ApiError wrong_form(std::string_view name, PromptForm form) {
  return bad_request(fmt::format("{} must be {}.", name, expected(form)), name);
}

ApiStatus add_text(const ApiContext& context, const json::string& text, std::string_view name, PromptList& prompts) {
  if (context.tokenizer == nullptr) {
    return bad_request(
        fmt::format("{} must be token ids: this server runs with --skip-tokenizer-init and reads no text.", name),
        name);
  }
  prompts.texts.emplace_back(text.data(), text.size());
  prompts.ids.push_back(context.tokenizer->encode(prompts.texts.back(), true));
  return {};
}

}  // namespace

ApiResult<PromptList> read_prompts(const ApiContext& context, const json::value& value, std::string_view name,
                                   PromptForm form) {
  const bool text_allowed = form != PromptForm::kIds;
  const bool ids_allowed = form != PromptForm::kText;
  PromptList prompts;
  if (const json::string* text = value.if_string(); text != nullptr && text_allowed) {
    PLAIT_RETURN_IF_ERROR(add_text(context, *text, name, prompts));
    return prompts;
  }
  const json::array* list = value.if_array();
  if (list == nullptr) return wrong_form(name, form);
  if (list->empty()) return bad_request(fmt::format("{} is empty.", name), name);
  if (list->front().is_number() && ids_allowed) {
    PLAIT_ASSIGN_OR_RETURN(auto ids, as_token_ids(*list, name, context.config.vocab_size));
    prompts.ids.push_back(std::move(ids));
    return prompts;
  }

  prompts.list = true;
  if (list->size() > context.limits.sequences) {
    return bad_request(fmt::format("{} must not have more than {} prompts.", name, context.limits.sequences), name);
  }
  for (const json::value& element : *list) {
    if (element.kind() != list->front().kind()) return wrong_form(name, form);
    if (element.is_string() && text_allowed) {
      PLAIT_RETURN_IF_ERROR(add_text(context, element.get_string(), name, prompts));
    } else if (element.is_array() && ids_allowed) {
      const std::string path = fmt::format("{}[{}]", name, prompts.ids.size());
      PLAIT_ASSIGN_OR_RETURN(auto ids, as_token_ids(element.get_array(), path, context.config.vocab_size));
      prompts.ids.push_back(std::move(ids));
    } else {
      return wrong_form(name, form);
    }
  }
  return prompts;
}

}  // namespace plait
