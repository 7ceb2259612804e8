// Which norm of the model a norm stage is.
#pragma once

#include <cstdint>

namespace plait {

enum class NormPlace : uint8_t { kAttention, kFeedForward, kHead };

}  // namespace plait
