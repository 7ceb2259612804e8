#include "topology/disaggregation.h"

#include <iterator>

namespace plait {
namespace {

constexpr const char* kModeNames[] = {"null", "prefill", "decode"};

}  // namespace

Result<DisaggregationMode> parse_disaggregation_mode(const std::string& word) {
  for (size_t i = 0; i < std::size(kModeNames); ++i)
    if (word == kModeNames[i]) return static_cast<DisaggregationMode>(i);
  return invalid(fmt::format("--disaggregation-mode {}: choose null, prefill or decode", word));
}

const char* name_of(DisaggregationMode mode) {
  return kModeNames[static_cast<int>(mode)];
}

}  // namespace plait
