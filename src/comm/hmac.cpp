#include "comm/hmac.h"

#include <algorithm>
#include <vector>

namespace plait::comm {

Digest hmac_sha256(std::string_view key, std::span<const uint8_t> data) {
  std::array<uint8_t, kSha256BlockBytes> block{};
  if (key.size() > kSha256BlockBytes) {
    const Digest short_key = sha256(key);
    std::copy(short_key.begin(), short_key.end(), block.begin());
  } else {
    std::copy(key.begin(), key.end(), block.begin());
  }
  std::vector<uint8_t> inner, outer;
  for (const uint8_t byte : block) {
    inner.push_back(byte ^ 0x36);
    outer.push_back(byte ^ 0x5c);
  }
  inner.insert(inner.end(), data.begin(), data.end());
  const Digest digest = sha256(inner);
  outer.insert(outer.end(), digest.begin(), digest.end());
  return sha256(outer);
}

bool equal_in_constant_time(const Digest& a, const Digest& b) {
  uint8_t difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference |= static_cast<uint8_t>(a[i] ^ b[i]);
  return difference == 0;
}

}  // namespace plait::comm
