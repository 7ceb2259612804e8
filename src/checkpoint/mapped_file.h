// A file mapped read-only. Owns the mapping; const after opening, so any thread may read it.
//
// If somebody cuts the file while it is mapped, the kernel answers reads behind its new end with SIGBUS, which ends the
// process: a checkpoint must not be written to while it is loaded. Replacing a file by renaming is safe.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <utility>

#include "base/error.h"

namespace plait {

class MappedFile {
 public:
  // Regular files only; a symbolic link is not followed. Errors: kNotFound, kIo, kCorrupt (not a regular file).
  static Result<MappedFile> open(const std::filesystem::path& file);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  std::span<const std::byte> bytes() const { return bytes_; }

  // Hints about a part of the mapping; never an error, never a change of what is read.
  static void will_read(std::span<const std::byte> range);
  // The process lets go of pages that lie in `range` only; the page cache may keep them.
  static void release(std::span<const std::byte> range);

 private:
  explicit MappedFile(std::span<const std::byte> bytes) : bytes_(bytes) {}
  std::span<const std::byte> bytes_;
};

}  // namespace plait
