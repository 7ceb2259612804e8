#include "text/bpe.h"

#include <bit>

#include "text/word_cache.h"

namespace plait {
namespace {

// Above this, scanning for the lowest rank costs more than keeping a heap.
constexpr size_t kShortPiece_bytes = 96;
// Positions in a piece are 32 bits wide. One word of more bytes than this is merged in parts.
constexpr size_t kLongestPiece_bytes = size_t{1} << 30;

}  // namespace

BpeScratch::BpeScratch() : cache_(std::make_unique<WordCache>()) {}
BpeScratch::~BpeScratch() = default;

MergeTable::MergeTable(size_t merges) : slots_(std::bit_ceil(2 * merges + 2)) {}

size_t MergeTable::slot_of(uint64_t pair) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = (pair * 0x9E3779B97F4A7C15u >> 20) & mask;
  while (slots_[slot].pair != pair && slots_[slot].pair != UINT64_MAX) slot = (slot + 1) & mask;
  return slot;
}

namespace {
uint64_t pair_of(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}
}  // namespace

void MergeTable::insert(int32_t left, int32_t right, Merge merge) {
  const uint64_t pair = pair_of(left, right);
  slots_[slot_of(pair)] = {pair, merge};
}

MergeTable::Merge MergeTable::find(int32_t left, int32_t right) const {
  return slots_[slot_of(pair_of(left, right))].merge;
}

Bpe::Bpe(const Vocabulary* vocabulary, MergeTable merges, bool ignore_merges)
    : vocabulary_(vocabulary), merges_(std::move(merges)), ignore_merges_(ignore_merges) {
  for (int byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    byte_ids_[byte] = vocabulary->id_of_bytes({&text, 1}).value_or(-1);
  }
}

void Bpe::encode(std::string_view piece, BpeScratch& scratch, std::vector<int32_t>& ids) const {
  if (piece.size() == 1) {
    const int32_t id = byte_ids_[static_cast<unsigned char>(piece[0])];
    if (id >= 0) ids.push_back(id);
    return;
  }
  WordCache::Entry* entry = scratch.cache_->slot(piece);
  if (entry && entry->holds(piece)) {
    ids.insert(ids.end(), entry->ids, entry->ids + entry->count);
    return;
  }
  const size_t before = ids.size();
  const std::optional<int32_t> whole = ignore_merges_ ? vocabulary_->id_of_bytes(piece) : std::nullopt;
  if (whole) {
    ids.push_back(*whole);
  } else {
    for (size_t at = 0; at < piece.size(); at += kLongestPiece_bytes)
      merge(piece.substr(at, kLongestPiece_bytes), scratch, ids);
  }
  if (entry) entry->keep(piece, std::span(ids).subspan(before));
}

void Bpe::merge(std::string_view piece, BpeScratch& scratch, std::vector<int32_t>& ids) const {
  scratch.ids_.clear();
  for (const char byte : piece) {
    const int32_t id = byte_ids_[static_cast<unsigned char>(byte)];
    if (id >= 0) scratch.ids_.push_back(id);
  }
  if (scratch.ids_.size() <= kShortPiece_bytes) {
    merge_short(scratch);
  } else {
    merge_long(scratch);
  }
  ids.insert(ids.end(), scratch.ids_.begin(), scratch.ids_.end());
}

// O(n^2) with a very small constant: ranks_[i] is the rank of the pair that begins at i.
void Bpe::merge_short(BpeScratch& scratch) const {
  std::vector<int32_t>& ids = scratch.ids_;
  std::vector<uint32_t>& ranks = scratch.ranks_;
  size_t n = ids.size();
  ranks.resize(n);
  const auto rank_at = [&](size_t i) { return i + 1 < n ? merges_.find(ids[i], ids[i + 1]).rank : MergeTable::kNone; };
  for (size_t i = 0; i < n; ++i) ranks[i] = rank_at(i);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i < n; ++i) best = ranks[i] < ranks[best] ? i : best;
    if (ranks[best] == MergeTable::kNone) break;
    ids[best] = merges_.find(ids[best], ids[best + 1]).id;
    std::copy(ids.begin() + best + 2, ids.begin() + n, ids.begin() + best + 1);
    std::copy(ranks.begin() + best + 2, ranks.begin() + n, ranks.begin() + best + 1);
    --n;
    ranks[best] = rank_at(best);
    if (best > 0) ranks[best - 1] = rank_at(best - 1);
  }
  ids.resize(n);
}

namespace {
// Heap order: lowest rank first, the leftmost of equals.
constexpr auto kLater = [](const auto& a, const auto& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
};
}  // namespace

void Bpe::push_candidate(uint32_t position, BpeScratch& scratch) const {
  const auto& symbols = scratch.symbols_;
  const auto& left = symbols[position];
  if (left.next >= symbols.size()) return;
  const int32_t right = symbols[left.next].id;
  const uint32_t rank = merges_.find(left.id, right).rank;
  if (rank == MergeTable::kNone) return;
  scratch.heap_.push_back({rank, position, left.id, right});
  std::push_heap(scratch.heap_.begin(), scratch.heap_.end(), kLater);
}

// O(n log n): symbols in a linked list, candidate pairs in a heap; pairs whose symbols have changed since are skipped.
void Bpe::merge_long(BpeScratch& scratch) const {
  auto& symbols = scratch.symbols_;
  auto& heap = scratch.heap_;
  const auto n = static_cast<uint32_t>(scratch.ids_.size());
  symbols.resize(n);
  heap.clear();
  for (uint32_t i = 0; i < n; ++i) symbols[i] = {scratch.ids_[i], i - 1, i + 1};
  for (uint32_t i = 0; i + 1 < n; ++i) push_candidate(i, scratch);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), kLater);
    const BpeScratch::Candidate candidate = heap.back();
    heap.pop_back();
    auto& left = symbols[candidate.position];
    if (left.id != candidate.left || left.next >= n || symbols[left.next].id != candidate.right) continue;
    auto& right = symbols[left.next];
    left.id = merges_.find(candidate.left, candidate.right).id;
    right.id = -1;
    left.next = right.next;
    if (left.next < n) symbols[left.next].previous = candidate.position;
    push_candidate(candidate.position, scratch);
    if (candidate.position > 0) push_candidate(left.previous, scratch);
  }
  scratch.ids_.clear();
  for (uint32_t i = 0; i < n; i = symbols[i].next) scratch.ids_.push_back(symbols[i].id);
  // one long word must not pin its memory
  if (symbols.capacity() > (1u << 20)) std::vector<BpeScratch::Symbol>().swap(symbols);
  if (heap.capacity() > (1u << 20)) std::vector<BpeScratch::Candidate>().swap(heap);
}

}  // namespace plait
