// How whole replicas (--dp-size without --enable-dp-attention) share their host: each is an engine of its own, with an
// equal part of the memory and of the cores.
//
// Values only.
#pragma once

#include <cstddef>

#include "engine/engine.h"

namespace plait {

// What one replica is started with, of `available_bytes` and `cores` for all. One engine alone gets what was asked for:
// it looks for itself what there is.
EngineOptions options_of_replica(const EngineOptions& asked, size_t available_bytes, int cores);

}  // namespace plait
