#include "engine/context_pages.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "base/assert.h"

namespace plait {

std::vector<int32_t> pages_with_history(const Step& step, int64_t page_tokens) {
  std::vector<int32_t> pages;
  for (const StepSequence& sequence : step.sequences) {
    const int64_t count = (sequence.first_position + page_tokens - 1) / page_tokens;
    pages.insert(pages.end(), sequence.pages.begin(), sequence.pages.begin() + count);
  }
  std::sort(pages.begin(), pages.end());
  pages.erase(std::unique(pages.begin(), pages.end()), pages.end());
  return pages;
}

ContextPages::ContextPages(const KvSpec& spec, const KvMemory& own, int64_t first_layer, int members, int member)
    : spec_(spec),
      own_(own),
      first_layer_(first_layer),
      members_(members),
      member_(member),
      history_(static_cast<size_t>(members)) {
  for (const KvComponent& component : spec_.components)
    PLAIT_ASSERT(component.growth == KvGrowth::kPerToken && component.tokens_per_row == 1, "a row for each token");
  gathered_.page_tokens = own_.page_tokens;
  buffers_.resize(spec_.components.size());
  gathered_.components.resize(spec_.components.size());
}

int64_t ContextPages::page_bytes(size_t component) const {
  return own_.page_tokens * spec_.components[component].row_bytes();
}

std::byte* ContextPages::own_layer(size_t component, int64_t layer) const {
  return own_.components[component].data + (layer - first_layer_) * own_.components[component].layer_stride_bytes;
}

// The gathered pages: first those with history, one member's after the other's as they arrive, then the new ones.
const Step& ContextPages::begin(const Step& step) {
  const int64_t page_tokens = own_.page_tokens;
  for (auto& pages : history_) pages.clear();
  for (const int32_t page : pages_with_history(step, page_tokens))
    history_[static_cast<size_t>(page % members_)].push_back(page);
  std::unordered_map<int32_t, int32_t> place_of;
  for (const auto& pages : history_)
    for (const int32_t page : pages) place_of.emplace(page, static_cast<int32_t>(place_of.size()));

  step_ = step;
  new_rows_.clear();
  for (StepSequence& sequence : step_.sequences) {
    const int64_t end = sequence.first_position + sequence.row_count;
    sequence.pages.resize(static_cast<size_t>((end + page_tokens - 1) / page_tokens));
    for (int64_t index = 0; index < std::ssize(sequence.pages); ++index) {
      int32_t& page = sequence.pages[static_cast<size_t>(index)];
      const int32_t place = place_of.emplace(page, static_cast<int32_t>(place_of.size())).first->second;
      const int64_t first = std::max(sequence.first_position, index * page_tokens);
      const int64_t last = std::min(end, (index + 1) * page_tokens);
      if (first < last && page % members_ == member_) {
        const int64_t offset = first - index * page_tokens;
        new_rows_.push_back({place * page_tokens + offset, page / members_ * page_tokens + offset, last - first});
      }
      page = place;
    }
  }
  gathered_.pages = std::ssize(place_of);
  for (size_t component = 0; component < buffers_.size(); ++component) {
    const auto bytes = static_cast<size_t>(gathered_.pages * page_bytes(component));
    if (bytes > buffers_[component].size_bytes()) buffers_[component] = Buffer(bytes);
    gathered_.components[component] = {buffers_[component].as<std::byte>(), /*layer_stride_bytes=*/0};
  }
  return step_;
}

Status ContextPages::bring(int64_t layer, comm::Communicator& members) {
  if (std::ranges::all_of(history_, [](const auto& pages) { return pages.empty(); })) return {};
  for (size_t component = 0; component < buffers_.size(); ++component) {
    const int64_t bytes = page_bytes(component);
    counts_.clear();
    for (const auto& pages : history_) counts_.push_back(std::ssize(pages) * bytes);
    const auto& mine = history_[static_cast<size_t>(member_)];
    if (sent_.size_bytes() < mine.size() * static_cast<size_t>(bytes))
      sent_ = Buffer(mine.size() * static_cast<size_t>(bytes));
    auto* to = sent_.as<std::byte>();
    for (const int32_t page : mine) {
      std::memcpy(to, own_layer(component, layer) + page / members_ * bytes, static_cast<size_t>(bytes));
      to += bytes;
    }
    PLAIT_RETURN_IF_ERROR(members.all_gather("KV pages", sent_.as<std::byte>(), buffers_[component].as<std::byte>(),
                                             counts_, DType::kU8));
  }
  return {};
}

void ContextPages::keep(int64_t layer) {
  for (size_t component = 0; component < buffers_.size(); ++component) {
    const int64_t token_bytes = spec_.components[component].row_bytes();
    const auto* from = buffers_[component].as<std::byte>();
    std::byte* const to = own_layer(component, layer);
    for (const NewRows& rows : new_rows_)
      std::memcpy(to + rows.to * token_bytes, from + rows.from * token_bytes,
                  static_cast<size_t>(rows.tokens * token_bytes));
  }
}

}  // namespace plait
