// Routed experts in requests and answers: the fields that ask for them, and rows as text.
//
// Values are base64 of little-endian ids [tokens, layers of the model, experts_per_token], zeros in layers without
// experts: int32 as SGLang has it, or on request the narrowest type that holds every id.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "model/routed_experts.h"
#include "server/answer_text.h"
#include "server/api_context.h"
#include "server/client_sequence.h"
#include "server/request_fields.h"

namespace plait {

enum class RoutedExpertsFormat { kInt32, kCompact };

struct RoutedExpertsChoice {
  bool wanted = false;
  int64_t start = 0;  // first position whose row is wanted
  RoutedExpertsFormat format = RoutedExpertsFormat::kInt32;
};

// return_routed_experts, routed_experts_start_len, routed_experts_format. Violations stay in `fields`.
RoutedExpertsChoice read_routed_experts(RequestFields& fields, const ApiContext& context);
void apply(const RoutedExpertsChoice& choice, Request& request);

// Of compact rows [count, shape.row_bytes()], made piece by piece. Base64 has nothing that JSON escapes.
std::unique_ptr<ByteSource> routed_experts_text(RoutedExpertShape shape, RoutedExpertsFormat format,
                                                std::shared_ptr<const std::string> rows, int64_t count);

// "routed_experts":"..." of a finished sequence, in compact form with "routed_experts_dtype".
void append_routed_experts(AnswerText& out, const ApiContext& context, RoutedExpertsFormat format,
                           const ClientSequence& sequence);

}  // namespace plait
