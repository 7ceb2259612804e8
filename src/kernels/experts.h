// Rows sorted by expert and back: what surrounds the grouped products of a mixture of experts.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/context.h"
#include "tensor/matrix.h"

namespace plait::kernels {

// The rows of one step in expert order. Pair p = (token, slot) of the gate's [tokens, k] tables.
struct ExpertOrder {
  std::vector<int32_t> row_of_pair;      // [tokens * k] place of each pair in the sorted rows; -1: not local
  std::vector<int32_t> token_of_row;     // [rows]
  std::vector<int32_t> expert_of_group;  // [groups] experts that got rows, ascending
  std::vector<int64_t> group_begin;      // [groups + 1] first row of each group

  // Experts in [first_expert, first_expert + expert_count) are local.
  static ExpertOrder make(std::span<const int32_t> expert_ids, int64_t tokens, int64_t k, int32_t first_expert,
                          int32_t expert_count);
};

// y[row] = x[token_of_row[row]]. x: [tokens, width], y: [rows, width]
void gather_rows(const Context& context, ConstRows x, std::span<const int32_t> token_of_row, Rows y);

// y[t] += sum over slots s of weight[t, s] * x[row_of_pair[t, s]], slots in ascending order. x: [rows, width], y:
// [tokens, width], weights: [tokens, k]
void combine_rows(const Context& context, ConstRows x, const ExpertOrder& order, const float* weights, int64_t k,
                  Rows y);

}  // namespace plait::kernels
