// The workspace slots of a forward pass. Kernels have 16 and up for themselves (kernels/context.h).
#pragma once

#include <cstdint>

#include "kernels/context.h"
#include "tensor/matrix.h"

namespace plait::scratch {

enum Slot : int {
  // Alive through the whole pass
  kResidual,
  kNormed,
  kDelta,
  // Attention and feed-forward alternate and use the same slots, so that each is as large as the larger of its users.
  kBlock0,
  kBlock1,
  kBlock2,
  kBlock3,
  kBlock4,
  kBlock5,
};

// Attention
inline constexpr int kProjected = kBlock0;
inline constexpr int kQuery = kBlock1;
inline constexpr int kAbsorbedQuery = kBlock2;
inline constexpr int kAbsorbedOut = kBlock3;
inline constexpr int kHeadOut = kBlock4;

// Feed-forward
inline constexpr int kGateUp = kBlock0;
inline constexpr int kActivated = kBlock1;
inline constexpr int kExpertIn = kBlock2;
inline constexpr int kExpertOut = kBlock3;
inline constexpr int kRouting = kBlock4;
inline constexpr int kExpertWeight = kBlock5;

// Final norm and head
inline constexpr int kLogitResidual = kBlock0;
inline constexpr int kLogitDelta = kBlock1;

// [rows, cols], undefined contents
inline Rows rows(const kernels::Context& context, int slot, int64_t rows, int64_t cols) {
  return {context.workspace->get_array<float>(slot, rows * cols), rows, cols};
}

}  // namespace plait::scratch
