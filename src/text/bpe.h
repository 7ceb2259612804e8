// Byte pair encoding: a piece of text (a word) to token ids, by merging the pair of lowest rank until none is left.
//
// Bpe is const once made: any thread may encode, each with its own BpeScratch.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/vocabulary.h"

namespace plait {

// (left id, right id) -> rank and id of what they merge to. Open addressing: one cache line a look-up.
class MergeTable {
 public:
  struct Merge {
    uint32_t rank = kNone;
    int32_t id = -1;
  };
  static constexpr uint32_t kNone = UINT32_MAX;

  explicit MergeTable(size_t merges);  // at most so many
  // The last one of several with the same pair stays.
  void insert(int32_t left, int32_t right, Merge merge);
  Merge find(int32_t left, int32_t right) const;

 private:
  struct Slot {
    uint64_t pair = UINT64_MAX;
    Merge merge;
  };
  size_t slot_of(uint64_t pair) const;

  std::vector<Slot> slots_;  // a power of two, at most half full
  int shift_;
};

class WordCache;

// Memory that encoding needs, and words that were encoded lately. One thread at a time; for one Bpe only.
class BpeScratch {
 public:
  BpeScratch();
  ~BpeScratch();

 private:
  friend class Bpe;
  struct Symbol {
    int32_t id;  // -1: merged into an earlier one
    uint32_t previous, next;
  };
  struct Candidate {
    uint32_t rank, position;
    int32_t left, right;
  };
  std::vector<int32_t> ids_;
  std::vector<MergeTable::Merge> merges_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
  std::unique_ptr<WordCache> cache_;
};

class Bpe {
 public:
  // `vocabulary` outlives the object. `ignore_merges`: a piece that is a token is that token, whatever the merges say.
  Bpe(const Vocabulary* vocabulary, MergeTable merges, bool ignore_merges);

  // Appends the ids of `piece`, whose every byte has a token.
  void encode(std::string_view piece, BpeScratch& scratch, std::vector<int32_t>& ids) const;

 private:
  void merge(std::string_view piece, BpeScratch& scratch, std::vector<int32_t>& ids) const;
  void merge_short(std::string_view piece, BpeScratch& scratch) const;
  void merge_long(BpeScratch& scratch) const;
  void push_candidate(uint32_t position, BpeScratch& scratch) const;

  const Vocabulary* vocabulary_;
  std::array<int32_t, 256> byte_ids_;  // the token of each single byte; -1: none (it is no part of UTF-8)
  MergeTable merges_;
  std::vector<MergeTable::Merge> byte_pairs_;  // of two single bytes, [left << 8 | right]
  bool ignore_merges_;
};

}  // namespace plait
