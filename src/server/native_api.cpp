#include "server/native_api.h"

#include "server/native_format.h"
#include "server/prompts.h"
#include "server/request_fields.h"
#include "server/routed_experts.h"
#include "server/sampling_fields.h"

namespace plait {
namespace {

namespace json = boost::json;

// Fields of SGLang that change what an answer means: ignoring them would be worse than refusing.
struct RefusedField {
  std::string_view name;
  std::string_view why;
};
constexpr RefusedField kRefused[] = {
    {"input_embeds", "prompts are text or token ids"},
    {"image_data", "the models served here read text only"},
    {"audio_data", "the models served here read text only"},
    {"video_data", "the models served here read text only"},
    {"return_hidden_states", "hidden states do not leave the engine in this version"},
    {"return_prompt_token_ids", "prompt ids are not returned in this version"},
    {"lora_path", "adapters are not part of this version"},
    {"session_params", "sessions are not part of this version"},
    {"custom_logit_processor", "custom logit processors are not part of this version"},
    {"extra_key", "the prefix cache has one name space in this version"},
    {"cache_salt", "the prefix cache has one name space in this version"},
    {"bootstrap_host", "prefill and decode run in one engine in this version"},
    {"bootstrap_port", "prefill and decode run in one engine in this version"},
    {"bootstrap_room", "prefill and decode run in one engine in this version"},
    {"disagg_prefill_dp_rank", "prefill and decode run in one engine in this version"},
};

ApiResult<PromptList> read_either(const ApiContext& context, const RequestFields& fields) {
  const json::value* text = fields.value("text");
  const json::value* input_ids = fields.value("input_ids");
  if ((text == nullptr) == (input_ids == nullptr)) {
    return bad_request("Exactly one of text and input_ids must be given.", "text");
  }
  return text != nullptr ? read_prompts(context, *text, "text", PromptForm::kText)
                         : read_prompts(context, *input_ids, "input_ids", PromptForm::kIds);
}

// Fields that hold one value for all prompts, or an array with one for each.
constexpr std::string_view kPerPrompt[] = {"sampling_params",  "rid",     "return_logprob", "logprob_start_len",
                                           "top_logprobs_num", "priority"};

// Ours, beside SGLang's: the rid of the whole batch.
constexpr std::string_view kGroup = "rid_group";

// The fields of prompt `index` alone.
ApiResult<json::object> fields_of_prompt(const RequestFields& fields, size_t index, size_t count, bool batch) {
  json::object own;
  const auto pick = [&](std::string_view name, bool is_list) -> ApiStatus {
    const json::value* value = fields.value(name);
    if (value == nullptr) return {};
    if (!is_list) {
      own[name] = *value;
      return {};
    }
    const json::array& list = value->get_array();
    if (!batch || list.size() != count) {
      return bad_request(fmt::format("{} has {} elements for {} prompts.", name, list.size(), count), name);
    }
    own[name] = list[index];
    return {};
  };
  for (const std::string_view name : kPerPrompt) {
    const json::value* value = fields.value(name);
    PLAIT_RETURN_IF_ERROR(pick(name, value != nullptr && value->is_array()));
  }
  // One rid for a batch: "<rid>_<prompt>" for each.
  if (const json::value* rid = fields.value("rid"); batch && rid != nullptr && rid->is_string()) {
    own["rid"] = fmt::format("{}_{}", std::string_view(rid->get_string()), index);
    own[kGroup] = *rid;
  }
  // One list of ids is already an array: only an array of arrays is one for each.
  constexpr std::string_view kIds = "token_ids_logprob";
  const json::value* ids = fields.value(kIds);
  const json::array* list = ids == nullptr ? nullptr : ids->if_array();
  const bool nested = list != nullptr && !list->empty() && (list->front().is_array() || list->front().is_null());
  PLAIT_RETURN_IF_ERROR(pick(kIds, nested));
  return own;
}

struct LogprobChoice {
  bool wanted = false;
  int64_t start = -1;
  int32_t top = 0;
  std::vector<int32_t> ids;
};

LogprobChoice read_logprobs(RequestFields& fields, const ApiContext& context, size_t prompt_tokens) {
  LogprobChoice choice;
  choice.wanted = fields.boolean("return_logprob").value_or(false);
  choice.start = fields.integer("logprob_start_len", {-1, static_cast<int64_t>(prompt_tokens)}).value_or(-1);
  choice.top = static_cast<int32_t>(fields.integer("top_logprobs_num", {0, context.limits.top_logprobs}).value_or(0));
  choice.ids = fields.token_ids("token_ids_logprob", context.limits.logprob_ids, context.config.vocab_size);
  if (!choice.wanted) return {};
  if (choice.start == static_cast<int64_t>(prompt_tokens)) choice.start = -1;
  return choice;
}

ApiStatus add_prompt(const ApiContext& context, const json::object& own, const RoutedExpertsChoice& experts,
                     std::optional<size_t> replica, std::vector<int32_t> ids, size_t index,
                     GenerationRequest& generation) {
  RequestFields item(own);
  static const json::object kNone;
  const json::object* sampling_object = item.object("sampling_params");
  RequestFields sampling(sampling_object == nullptr ? kNone : *sampling_object, "sampling_params");
  const SamplingChoice choice = read_sampling(sampling, SamplingSpelling::kNative, context);
  item.absorb(sampling);
  LogprobChoice logprobs = read_logprobs(item, context, ids.size());
  const IntegerRange priorities{std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()};
  const auto priority = item.integer("priority", priorities);

  SequenceRequest sequence{
      .rid = item.text("rid", context.limits.rid_bytes).value_or(""), .replica = replica, .prompt_index = index};
  sequence.group = item.text(kGroup).value_or("");
  PLAIT_RETURN_IF_ERROR(item.status());
  Request& request = sequence.request;
  request.prompt_ids = std::move(ids);
  request.priority = static_cast<int32_t>(priority.value_or(0));
  request.return_logprob = logprobs.wanted;
  request.logprob_start = logprobs.start;
  request.top_logprobs = logprobs.top;
  request.logprob_ids = std::move(logprobs.ids);
  apply(experts, request);
  return add_samples(context, choice, SamplingParams().max_new_tokens, std::move(sequence), generation);
}

}  // namespace

ApiResult<GenerationRequest> parse_generate(const ApiContext& context, const json::object& body) {
  RequestFields fields(body);
  for (const RefusedField& refused : kRefused) fields.refuse(refused.name, refused.why);
  const std::optional<size_t> replica = read_replica(context, fields);
  GenerationRequest generation;
  generation.stream = fields.boolean("stream").value_or(false);
  NativeFormatOptions format{.incremental = context.stream_output};
  format.logprob_text = fields.boolean("return_text_in_logprobs").value_or(false);
  const RoutedExpertsChoice experts = read_routed_experts(fields, context);
  format.experts = experts.format;
  PLAIT_RETURN_IF_ERROR(fields.status());

  PLAIT_ASSIGN_OR_RETURN(PromptList prompts, read_either(context, fields));
  for (size_t i = 0; i < prompts.ids.size(); ++i) {
    PLAIT_ASSIGN_OR_RETURN(const json::object own, fields_of_prompt(fields, i, prompts.ids.size(), prompts.list));
    PLAIT_RETURN_IF_ERROR(add_prompt(context, own, experts, replica, std::move(prompts.ids[i]), i, generation));
  }
  format.list = prompts.list || generation.sequences.size() > 1;
  generation.format = make_native_format(context, format);
  return generation;
}

}  // namespace plait
