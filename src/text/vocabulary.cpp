#include "text/vocabulary.h"

#include "text/byte_level.h"
#include "text/utf8.h"

namespace plait {

std::optional<int32_t> Vocabulary::look_up(const Index& index, std::string_view key) {
  const auto found = index.find(key);
  return found == index.end() ? std::nullopt : std::optional(found->second);
}

Status Vocabulary::check_id(int64_t id, std::string_view token) const {
  if (id >= 0 && id <= kMaxId) return {};
  return corrupt(fmt::format("token \"{}\": id {} is not in 0..{}", repair_utf8(token), id, kMaxId));
}

Status Vocabulary::add(int64_t id, std::string token, Index& index) {
  PLAIT_RETURN_IF_ERROR(check_id(id, token));
  if (id >= size()) entries_.resize(static_cast<size_t>(id) + 1);
  Entry& entry = entries_[id];
  if (entry.used)
    return corrupt(
        fmt::format("id {} is given to both \"{}\" and \"{}\"", id, repair_utf8(entry.bytes), repair_utf8(token)));
  if (!index.try_emplace(token, static_cast<int32_t>(id)).second)
    return corrupt(fmt::format("token \"{}\" has two ids", repair_utf8(token)));
  entry = {std::move(token), true, false};
  return {};
}

Status Vocabulary::add_bytes(int64_t id, std::string bytes) {
  return add(id, std::move(bytes), by_bytes_);
}

Status Vocabulary::add_literal(int64_t id, std::string text) {
  return add(id, std::move(text), literals_);
}

Status Vocabulary::add_added(int64_t id, std::string text, bool special) {
  PLAIT_RETURN_IF_ERROR(check_id(id, text));
  const std::optional<int32_t> known = id_of_written(text);
  if (known && *known != id)
    return corrupt(fmt::format("added token \"{}\": id {}, but the vocabulary says {}", text, id, *known));
  if (!known) PLAIT_RETURN_IF_ERROR(add(id, text, added_));
  added_.try_emplace(std::move(text), static_cast<int32_t>(id));
  entries_[id].special = special;
  return {};
}

std::optional<int32_t> Vocabulary::id_of_written(std::string_view written) const {
  if (const auto id = look_up(added_, written)) return id;
  if (const auto id = look_up(literals_, written)) return id;
  if (!is_utf8(written)) return std::nullopt;
  const std::optional<std::string> bytes = bytes_of_written(written);
  return bytes ? look_up(by_bytes_, *bytes) : std::nullopt;
}

}  // namespace plait
