// Which steps an engine makes: all, or those of prompts or of generated tokens alone, the others being another engine's
// (--disaggregation-mode). A node that only reads prompts never decodes, and the reverse.
#pragma once

#include <cstdint>
#include <string>

#include "base/error.h"

namespace plait {

enum class DisaggregationMode : uint8_t { kNull, kPrefill, kDecode };

Result<DisaggregationMode> parse_disaggregation_mode(const std::string& word);  // "null", "prefill", "decode"
const char* name_of(DisaggregationMode mode);

}  // namespace plait
