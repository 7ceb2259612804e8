// The prompts of a request: text or token ids, one or a list. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <boost/json/value.hpp>

#include "server/api_context.h"
#include "server/api_error.h"

namespace plait {

struct PromptList {
  std::vector<std::vector<int32_t>> ids;
  std::vector<std::string> texts;  // as given, if they were text
  bool list = false;               // the request had an array of prompts
};

enum class PromptForm { kText, kIds, kEither };

// A string or an array of strings; an array of token ids or an array of such arrays. `name` is the field, for messages.
ApiResult<PromptList> read_prompts(const ApiContext& context, const boost::json::value& prompts, std::string_view name,
                                   PromptForm form);

}  // namespace plait
