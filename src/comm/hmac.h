// HMAC-SHA-256 (RFC 2104, FIPS 180-4), with which two processes prove to each other that they know one secret.
//
// Plain functions; safe from any thread.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

namespace plait::comm {

using Digest = std::array<uint8_t, 32>;

Digest sha256(std::span<const uint8_t> data);
Digest hmac_sha256(std::string_view key, std::span<const uint8_t> data);
// Takes the same time wherever the digests differ.
bool equal_in_constant_time(const Digest& a, const Digest& b);

}  // namespace plait::comm
