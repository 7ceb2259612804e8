// The call that a member of a group is in, or was in last, as other threads may look at it.
#pragma once

#include <cstdint>

#include "comm/call.h"
#include "comm/signal.h"

namespace plait::comm {

inline constexpr int64_t kNoStep = -1;

struct OpenCall {
  CallRecord record;
  Clock::time_point began;
  int64_t step = kNoStep;  // that the rank is in now
  uint32_t number = 0;     // in the group, from 1; of a message 0
  int32_t peer = -1;       // of a message, the other member
  uint32_t ends_at = 0;    // the count of Seat::finished that ends the call; 0: nobody waits for its end
  bool receiving = false;  // a message
  bool computing = false;  // begun, and not waited for yet
  bool ever = false;       // there was one
};

}  // namespace plait::comm
