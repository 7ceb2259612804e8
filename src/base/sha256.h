// SHA-256 (FIPS 180-4): names of contents, and what HMAC is made of.
//
// Plain functions; safe from any thread. Portable code: right for kernels and handshakes, too slow for weights.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace plait {

using Digest = std::array<uint8_t, 32>;

inline constexpr size_t kSha256BlockBytes = 64;

Digest sha256(std::span<const uint8_t> data);
inline Digest sha256(std::string_view data) {
  return sha256(std::span(reinterpret_cast<const uint8_t*>(data.data()), data.size()));
}

std::string to_hex(const Digest& digest);  // 64 lower-case digits

}  // namespace plait
