// The tokens of a vocabulary: id -> bytes, and bytes or written form -> id.
//
// Filled by the readers, then const; any thread may read.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/error.h"

namespace plait {

class Vocabulary {
 public:
  // Ids are indexes of tables here: a file of a few bytes must not make them large.
  static constexpr int64_t kMaxId = (1 << 20) - 1;

  // A token of the merges, by its bytes. kCorrupt: an id outside [0, kMaxId] or given twice, or a token given twice.
  Status add_bytes(int64_t id, std::string bytes);
  // A token of the vocabulary that is not spelled in the byte alphabet: merging never makes it.
  Status add_literal(int64_t id, std::string text);
  // An added token. May repeat one of the others, with the same id.
  Status add_added(int64_t id, std::string text, bool special);

  std::string_view bytes(int32_t id) const { return exists(id) ? std::string_view(entries_[id].bytes) : ""; }
  bool is_special(int32_t id) const { return exists(id) && entries_[id].special; }
  std::optional<int32_t> id_of_bytes(std::string_view bytes) const { return look_up(by_bytes_, bytes); }
  // As written in the file.
  std::optional<int32_t> id_of_written(std::string_view written) const;
  int32_t size() const { return static_cast<int32_t>(entries_.size()); }  // highest id + 1

 private:
  struct Entry {
    std::string bytes;
    bool used = false;
    bool special = false;
  };
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  using Index = std::unordered_map<std::string, int32_t, Hash, std::equal_to<>>;

  bool exists(int32_t id) const { return id >= 0 && id < size() && entries_[id].used; }
  static std::optional<int32_t> look_up(const Index& index, std::string_view key);
  Status check_id(int64_t id, std::string_view token) const;
  Status add(int64_t id, std::string token, Index& index);

  std::vector<Entry> entries_;
  Index by_bytes_, literals_, added_;
};

}  // namespace plait
