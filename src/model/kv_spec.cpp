#include "model/kv_spec.h"

namespace plait {

double KvComponent::bytes_per_token() const {
  if (growth != KvGrowth::kPerToken) return 0;
  return static_cast<double>(layers * row_bytes()) / static_cast<double>(tokens_per_row);
}

int64_t KvComponent::bytes_per_sequence() const {
  switch (growth) {
    case KvGrowth::kPerToken:
      return 0;
    case KvGrowth::kWindow:
      return layers * window_tokens * row_bytes();
    case KvGrowth::kPerSequence:
      return layers * rows_per_sequence * row_bytes();
  }
  return 0;
}

double KvSpec::bytes_per_token() const {
  double bytes = 0;
  for (const KvComponent& component : components) bytes += component.bytes_per_token();
  return bytes;
}

int64_t KvSpec::bytes_per_sequence() const {
  int64_t bytes = 0;
  for (const KvComponent& component : components) bytes += component.bytes_per_sequence();
  return bytes;
}

}  // namespace plait
