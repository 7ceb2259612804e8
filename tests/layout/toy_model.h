// A model of integers: every stage is some function of a row (attention: of the row and those before it), with the same
// parts to divide as the real ones have. Sums wrap around at 2^64 and are therefore exact in any order, while norms mix
// a row beyond recognition: a summand taken for a sum, or a row in the wrong place, changes the logits.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "topology/model_facts.h"

namespace plait::test {

using Word = uint64_t;

// Widths of the toy. Parts are dealt out in turn (part p to place p % places), so any number of ranks may share them.
inline constexpr int kHidden = 3;
inline constexpr int kLatent = 2;
inline constexpr int kHeads = 8;
inline constexpr int kVocabulary = 8;
inline constexpr int kExperts = 8;
inline constexpr int kExpertsPerToken = 2;
inline constexpr int kSlices = 8;  // of a dense MLP, of the shared expert, of a routed expert
inline constexpr Word kRoutedScale = 5;

// Which parts a rank has: those p with p % of == place.
struct Share {
  int place = 0;
  int of = 1;
  bool has(int part) const { return part % of == place; }
};

// The rows of one data-parallel rank, in the scheduler's order.
struct Batch {
  std::vector<int> tokens;
  std::vector<int> sequence;    // of each row; sequences are runs of rows
  std::vector<int> logit_rows;  // ascending
};
// `many_logits`: of all rows but the first third, so that no rank's selected rows are just those that it held; else of
// each sequence's last row.
Batch make_batch(int rows, int seed, bool many_logits);

// The stages. x and y are rows of kHidden (kLatent after the projection, where there is one); y is added to.
void embed(int token, Share table, std::span<Word> y);
void norm(std::span<const Word> x, std::span<Word> y);
void project_latent(int64_t layer, std::span<const Word> x, std::span<Word> y);
Word key_of(int64_t layer, std::span<const Word> x);
// keys: of all rows of the batch (padding behind them); sums[row][head] of the heads in `heads`.
std::vector<std::array<Word, kHeads>> sum_keys(std::span<const Word> keys, const Batch& batch, Share heads);
void attend(int64_t layer, std::span<const Word> x, const std::array<Word, kHeads>& sums, Share heads,
            std::span<Word> y);
void dense_mlp(int64_t layer, std::span<const Word> x, Share width, std::span<Word> y);
void shared_expert(int64_t layer, std::span<const Word> x, Share width, std::span<Word> y);
std::array<int, kExpertsPerToken> route(int64_t layer, std::span<const Word> x);
// One routed expert with its weight for this row, not scaled.
void expert(int64_t layer, int index, std::span<const Word> x, Share width, std::span<Word> y);
Word logit(std::span<const Word> x, int token);

// Numbers that the planner weighs; V3's, for `layers` layers of which the first two are dense.
ModelFacts toy_facts(int64_t layers, bool low_rank_queries);

// One rank, one loop: the specification. [logit row][kVocabulary]
std::vector<std::array<Word, kVocabulary>> plain_logits(const ModelFacts& facts, const Batch& batch);

}  // namespace plait::test
