// HMAC-SHA-256 (RFC 2104), with which two processes prove to each other that they know one secret.
//
// Plain functions; safe from any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/sha256.h"

namespace plait::comm {

Digest hmac_sha256(std::string_view key, std::span<const uint8_t> data);
// Takes the same time wherever the digests differ.
bool equal_in_constant_time(const Digest& a, const Digest& b);

}  // namespace plait::comm
