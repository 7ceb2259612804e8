#include "engine/routed_expert_pool.h"

#include <bit>
#include <cstring>

#include "base/assert.h"

namespace plait {
namespace {

static_assert(std::endian::native == std::endian::little, "rows are sent as they lie in memory");

template <typename Id>
void narrow(const int32_t* ids, int64_t count, std::byte* to) {
  for (int64_t i = 0; i < count; ++i) {
    const Id id = static_cast<Id>(ids[i]);
    std::memcpy(to + i * static_cast<int64_t>(sizeof(Id)), &id, sizeof(Id));
  }
}

}  // namespace

RoutedExpertPool::RoutedExpertPool(RoutedExpertShape shape, int64_t pages, int64_t page_tokens)
    : shape_(std::move(shape)),
      page_tokens_(page_tokens),
      offset_of_layer_(static_cast<size_t>(shape_.layers), -1),
      rows_(static_cast<size_t>(pages * page_tokens * shape_.row_bytes())) {
  int64_t offset = 0;
  for (const int64_t layer : shape_.expert_layers) {
    offset_of_layer_[static_cast<size_t>(layer)] = offset;
    offset += shape_.experts_per_token * shape_.id_bytes;
  }
}

void RoutedExpertPool::write(int64_t layer, std::span<const Choice> choices, const int32_t* ids) {
  const int64_t offset = offset_of_layer_[static_cast<size_t>(layer)];
  PLAIT_ASSERT(offset >= 0, "a layer without experts was routed");
  const int64_t k = shape_.experts_per_token, row_bytes = shape_.row_bytes();
  std::byte* const base = rows_.as<std::byte>() + offset;
  const auto narrow_row = shape_.id_bytes == 1 ? narrow<uint8_t> : narrow<uint16_t>;
  for (const Choice& choice : choices) narrow_row(ids + choice.row * k, k, base + choice.slot * row_bytes);
}

void RoutedExpertPool::clear(std::span<const int64_t> slots) {
  const int64_t row_bytes = shape_.row_bytes();
  for (const int64_t slot : slots) std::fill_n(rows_.as<std::byte>() + slot * row_bytes, row_bytes, std::byte{0});
}

void RoutedExpertPool::read_slots(std::span<const int64_t> slots, std::string& rows) const {
  const auto row_bytes = static_cast<size_t>(shape_.row_bytes());
  for (const int64_t slot : slots) rows.append(rows_.as<char>() + static_cast<size_t>(slot) * row_bytes, row_bytes);
}

void RoutedExpertPool::merge(std::span<const int64_t> slots, std::string_view rows) {
  const int64_t row_bytes = shape_.row_bytes();
  PLAIT_ASSERT(std::ssize(rows) == std::ssize(slots) * row_bytes, "a row for each slot");
  const auto* from = reinterpret_cast<const std::byte*>(rows.data());
  for (const int64_t slot : slots) {
    std::byte* const to = rows_.as<std::byte>() + slot * row_bytes;
    for (int64_t i = 0; i < row_bytes; ++i) to[i] |= *from++;
  }
}

void RoutedExpertPool::read(std::span<const int32_t> pages, int64_t begin, int64_t end, std::string& rows) const {
  if (begin >= end) return;
  const int64_t row_bytes = shape_.row_bytes();
  size_t to = rows.size();
  rows.resize(to + static_cast<size_t>((end - begin) * row_bytes));
  while (begin < end) {
    const int64_t place = begin % page_tokens_;
    const int64_t count = std::min(end - begin, page_tokens_ - place);
    const int64_t slot = pages[static_cast<size_t>(begin / page_tokens_)] * page_tokens_ + place;
    const auto bytes = static_cast<size_t>(count * row_bytes);
    std::memcpy(rows.data() + to, rows_.as<std::byte>() + slot * row_bytes, bytes);
    to += bytes;
    begin += count;
  }
}

}  // namespace plait
