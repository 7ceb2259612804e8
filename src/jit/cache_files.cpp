#include "jit/cache_files.h"

#include <cerrno>

#include <fcntl.h>
#include <unistd.h>

namespace plait::jit {
namespace {

constexpr mode_t kFileMode = 0644;  // never writable by others, whatever the umask

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }
  // Network file systems may report only here that nothing was written.
  int close() {
    const int fd = std::exchange(fd_, -1);
    return ::close(fd) == 0 || errno == EINTR ? 0 : errno;
  }

 private:
  int fd_;
};

int write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return errno;
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return 0;
}

// Until the end of the file, which may be nearer than its status said.
int read_all(int fd, std::string& bytes) {
  size_t at = 0;
  while (at < bytes.size()) {
    const ssize_t got = ::read(fd, bytes.data() + at, bytes.size() - at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno;
    if (got == 0) break;
    at += static_cast<size_t>(got);
  }
  bytes.resize(at);
  return 0;
}

int write_and_close(Descriptor& file, std::string_view bytes, CacheFiles::Durability durability) {
  if (const int problem = write_all(file.get(), bytes)) return problem;
  if (durability == CacheFiles::Durability::kSynced && fsync(file.get()) != 0) return errno;
  return file.close();
}

}  // namespace

int CacheFiles::make_directory(const std::filesystem::path& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  return error.value();
}

int CacheFiles::read(const std::filesystem::path& file, size_t max_bytes, FileContents& contents) {
  // Opening a pipe would wait for its writer.
  const Descriptor descriptor(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!descriptor.is_open() || fstat(descriptor.get(), &contents.status) != 0) return errno;
  if (!S_ISREG(contents.status.st_mode)) return EINVAL;
  if (static_cast<uint64_t>(contents.status.st_size) > max_bytes) return EFBIG;
  contents.bytes.resize(static_cast<size_t>(contents.status.st_size));
  return read_all(descriptor.get(), contents.bytes);
}

int CacheFiles::create(const std::filesystem::path& file, std::string_view bytes, Durability durability) {
  Descriptor descriptor(::open(file.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, kFileMode));
  if (!descriptor.is_open()) return errno;
  const int problem = write_and_close(descriptor, bytes, durability);
  if (problem != 0) ::unlink(file.c_str());
  return problem;
}

int CacheFiles::link(const std::filesystem::path& file, const std::filesystem::path& name) {
  return ::link(file.c_str(), name.c_str()) == 0 ? 0 : errno;
}

int CacheFiles::rename(const std::filesystem::path& from, const std::filesystem::path& to) {
  return ::rename(from.c_str(), to.c_str()) == 0 ? 0 : errno;
}

int CacheFiles::sync_directory(const std::filesystem::path& directory) {
  Descriptor descriptor(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!descriptor.is_open()) return errno;
  if (fsync(descriptor.get()) == 0 || errno == EINVAL || errno == ENOTSUP || errno == EBADF) return 0;
  return errno;
}

int CacheFiles::remove(const std::filesystem::path& file) {
  return ::unlink(file.c_str()) == 0 ? 0 : errno;
}

int CacheFiles::touch(const std::filesystem::path& file) {
  // UTIME_NOW, not a time of ours: over a network it is the server that fills it in.
  const timespec now[2] = {{0, UTIME_NOW}, {0, UTIME_NOW}};
  return ::utimensat(AT_FDCWD, file.c_str(), now, AT_SYMLINK_NOFOLLOW) == 0 ? 0 : errno;
}

int CacheFiles::status(const std::filesystem::path& path, struct stat& status) {
  return ::stat(path.c_str(), &status) == 0 ? 0 : errno;
}

int CacheFiles::list(const std::filesystem::path& directory, std::vector<std::string>& names) {
  std::error_code error;
  for (auto at = std::filesystem::directory_iterator(directory, error);
       !error && at != std::filesystem::directory_iterator(); at.increment(error))
    names.push_back(at->path().filename().string());
  return error.value();
}

std::shared_ptr<CacheFiles> CacheFiles::real() {
  static const auto files = std::make_shared<CacheFiles>();
  return files;
}

int64_t modified_ns_of(const struct stat& status) {
  return int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec;
}

}  // namespace plait::jit
