// What an attention kind remembers, described rather than assumed, so that pools, accounting and memory plan work for
// all of them.
//
// MLA keeps one latent row per token and layer. V3.2 adds an indexer key per token. V4 keeps a ring of the last 128
// window tokens, an append-only list of compressed entries (one per 4 or 128 tokens) and per-sequence compressor state
// that speculation must be able to roll back. A pool is made from one KvComponent each.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensor/dtype.h"

namespace plait {

enum class KvGrowth : uint8_t {
  kPerToken,     // one row per `tokens_per_row` tokens, append-only, shared between sequences with the same prefix
  kWindow,       // ring of `window_tokens` rows per sequence
  kPerSequence,  // a fixed number of rows per sequence
};

struct KvComponent {
  std::string name;  // "latent"
  KvGrowth growth = KvGrowth::kPerToken;
  int64_t tokens_per_row = 1;
  int64_t window_tokens = 0;
  int64_t rows_per_sequence = 0;
  int64_t layers = 0;     // layers that have it
  int64_t row_width = 0;  // elements
  DType dtype = DType::kBF16;
  bool rolls_back = false;  // speculation may have to take back what unverified tokens wrote

  int64_t row_bytes() const { return row_width * size_of(dtype); }
  // Bytes over all layers: of one token in the long run, and of one sequence whatever its length.
  double bytes_per_token() const;
  int64_t bytes_per_sequence() const;
};

struct KvSpec {
  std::vector<KvComponent> components;
  double bytes_per_token() const;
  int64_t bytes_per_sequence() const;
  // Prefix reuse is exact only at multiples of this many tokens (V4: 128); the page size must be one as well.
  int64_t reuse_granularity_tokens = 1;
};

}  // namespace plait
