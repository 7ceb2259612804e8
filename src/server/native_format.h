// The shape of /generate's answers: text, output_ids, meta_info.
#pragma once

#include <memory>

#include "server/api_context.h"
#include "server/generation_request.h"
#include "server/routed_experts.h"

namespace plait {

struct NativeFormatOptions {
  bool list = false;          // the answer is an array, events carry "index"
  bool incremental = false;   // an event holds only what is new, else everything so far
  bool logprob_text = false;  // return_text_in_logprobs
  RoutedExpertsFormat experts = RoutedExpertsFormat::kInt32;
};

// `context` outlives the format.
std::unique_ptr<ResponseFormat> make_native_format(const ApiContext& context, NativeFormatOptions options);

}  // namespace plait
