// The operations on files that the kernel cache consists of: the seam at which tests make them fail as full disks and
// network file systems do.
//
// Each returns 0 or an errno. Nothing here decides anything. The real one has no state; safe from any thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <sys/stat.h>
#include <vector>

namespace plait::jit {

// A file as it was when it was open, all of it from one descriptor.
struct FileContents {
  std::string bytes;
  struct stat status = {};
};

class CacheFiles {
 public:
  virtual ~CacheFiles() = default;

  // With its parents, as the umask says.
  virtual int make_directory(const std::filesystem::path& directory);
  // Regular files of at most `max_bytes` (else EFBIG), symbolic links not followed. Opening is what makes a network
  // file system ask its server, so what comes back is not older than the call.
  virtual int read(const std::filesystem::path& file, size_t max_bytes, FileContents& contents);
  // Makes a file that nobody had (O_EXCL), mode 0644 less the umask, and writes it; kSynced: it survives a loss of
  // power. After an error there is no file.
  enum class Durability { kPlain, kSynced };
  virtual int create(const std::filesystem::path& file, std::string_view bytes, Durability durability);
  // A second name, where there was none: EEXIST else.
  virtual int link(const std::filesystem::path& file, const std::filesystem::path& name);
  // Over an existing file, atomically.
  virtual int rename(const std::filesystem::path& from, const std::filesystem::path& to);
  // What was renamed in it survives a loss of power. File systems that cannot do that say 0.
  virtual int sync_directory(const std::filesystem::path& directory);
  virtual int remove(const std::filesystem::path& file);
  // Sets the modification time to now, by the clock of the file's server.
  virtual int touch(const std::filesystem::path& file);
  virtual int status(const std::filesystem::path& path, struct stat& status);
  virtual int list(const std::filesystem::path& directory, std::vector<std::string>& names);

  static std::shared_ptr<CacheFiles> real();
};

int64_t modified_ns_of(const struct stat& status);  // since 1970, by the server's clock

}  // namespace plait::jit
