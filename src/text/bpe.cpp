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

MergeTable::MergeTable(size_t merges)
    : slots_(std::bit_ceil(2 * merges + 2)), shift_(64 - std::countr_zero(slots_.size())) {}

size_t MergeTable::slot_of(uint64_t pair) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = pair * 0x9E3779B97F4A7C15u >> shift_;  // the high bits depend on both ids
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
    : vocabulary_(vocabulary), merges_(std::move(merges)), byte_pairs_(65536), ignore_merges_(ignore_merges) {
  for (int byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    byte_ids_[byte] = vocabulary->id_of_bytes({&text, 1}).value_or(-1);
  }
  for (size_t left = 0; left < 256; ++left) {
    for (size_t right = 0; right < 256; ++right)
      byte_pairs_[left << 8 | right] = merges_.find(byte_ids_[left], byte_ids_[right]);
  }
}

void Bpe::encode(std::string_view piece, BpeScratch& scratch, std::vector<int32_t>& ids) const {
  if (piece.size() == 1) {
    ids.push_back(byte_ids_[static_cast<unsigned char>(piece[0])]);
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
  for (const char byte : piece) scratch.ids_.push_back(byte_ids_[static_cast<unsigned char>(byte)]);
  if (piece.size() <= kShortPiece_bytes) {
    merge_short(piece, scratch);
  } else {
    merge_long(scratch);
  }
  ids.insert(ids.end(), scratch.ids_.begin(), scratch.ids_.end());
}

// O(n^2) with a very small constant: merges[i] is what the pair that begins at i would become.
void Bpe::merge_short(std::string_view piece, BpeScratch& scratch) const {
  std::vector<int32_t>& ids = scratch.ids_;
  std::vector<MergeTable::Merge>& merges = scratch.merges_;
  size_t n = ids.size();
  merges.assign(n, MergeTable::Merge());
  for (size_t i = 0; i + 1 < n; ++i)
    merges[i] = byte_pairs_[static_cast<unsigned char>(piece[i]) << 8 | static_cast<unsigned char>(piece[i + 1])];
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i) best = merges[i].rank < merges[best].rank ? i : best;
    if (merges[best].rank == MergeTable::kNone) break;
    ids[best] = merges[best].id;
    --n;
    for (size_t i = best + 1; i < n; ++i) {
      ids[i] = ids[i + 1];
      merges[i] = merges[i + 1];
    }
    if (best + 1 < n) merges[best] = merges_.find(ids[best], ids[best + 1]);
    if (best > 0) merges[best - 1] = merges_.find(ids[best - 1], ids[best]);
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
}

}  // namespace plait
