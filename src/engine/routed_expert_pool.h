// The experts chosen for every token of the KV pool of one data-parallel rank.
//
// One compact row (model/routed_experts.h) for each place of a KV page, on the host. A row belongs to the KV rows of
// the same place and needs no accounts of its own: it is written when they are, valid as long as they are, and shared,
// given back and overwritten with their page; so prefix hits, retraction and chunks are right because they are for KV.
//
// The ranks that compute the rows write them, each other bytes of them, while a step runs; which rank writes a row of a
// layer is StepPlaces::recorded(). Rows that no step under way writes may be read meanwhile.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/routed_experts.h"
#include "tensor/buffer.h"

namespace plait {

class RoutedExpertPool {
 public:
  RoutedExpertPool(RoutedExpertShape shape, int64_t pages, int64_t page_tokens);

  struct Choice {
    int64_t row = 0;   // of the router's output
    int64_t slot = 0;  // page * page_tokens + place in the page
  };
  // `ids`: [rows, experts_per_token]
  void write(int64_t layer, std::span<const Choice> choices, const int32_t* ids);
  // Rows that ranks of several processes write in parts: each process clears them before the step, and one adds what
  // the others have of them, [slots, row_bytes].
  void clear(std::span<const int64_t> slots);
  void read_slots(std::span<const int64_t> slots, std::string& rows) const;
  void merge(std::span<const int64_t> slots, std::string_view rows);
  // Appends the rows of positions [begin, end) of a sequence with these pages.
  void read(std::span<const int32_t> pages, int64_t begin, int64_t end, std::string& rows) const;

  const RoutedExpertShape& shape() const { return shape_; }
  int64_t page_tokens() const { return page_tokens_; }
  size_t size_bytes() const { return rows_.size_bytes(); }

 private:
  const RoutedExpertShape shape_;
  const int64_t page_tokens_;
  std::vector<int64_t> offset_of_layer_;  // [layers] in a row, in bytes; -1: no experts
  Buffer rows_;                           // [pages, page_tokens, row_bytes]
};

}  // namespace plait
