#include "engine/replicas.h"

namespace plait {

EngineOptions options_of_replica(const EngineOptions& asked, size_t available_bytes, int cores) {
  const int replicas = asked.parallel.replicas();
  EngineOptions own = asked;
  if (replicas == 1) return own;
  own.parallel.dp_size = 1;
  own.threads = std::max(1, (asked.threads > 0 ? asked.threads : cores) / replicas);
  own.memory_bytes = available_bytes / static_cast<size_t>(replicas);
  return own;
}

}  // namespace plait
