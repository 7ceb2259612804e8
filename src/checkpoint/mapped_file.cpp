#include "checkpoint/mapped_file.h"

#include <cerrno>
#include <sys/mman.h>
#include <sys/stat.h>

#include <fcntl.h>
#include <unistd.h>

#include "base/launch_region.h"

namespace plait {
namespace {

size_t page_bytes() {
  static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

Result<MappedFile> MappedFile::open(const std::filesystem::path& file) {
  about_to_block("opening a file");
  const std::string name = file.string();
  // Opening a pipe would wait for its writer.
  const Descriptor descriptor(::open(name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (descriptor.get() < 0) {
    if (errno == ENOENT) return not_found(fmt::format("{}: no such file", name));
    return io_error(fmt::format("{}: cannot be opened", name), errno);
  }
  struct stat status = {};
  if (fstat(descriptor.get(), &status) != 0) return io_error(fmt::format("{}: cannot be read", name), errno);
  if (!S_ISREG(status.st_mode)) return corrupt(fmt::format("{}: not a regular file", name));
  const auto bytes = static_cast<size_t>(status.st_size);
  if (bytes == 0) return MappedFile(std::span<const std::byte>());
  void* data = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, descriptor.get(), 0);
  if (data == MAP_FAILED) return io_error(fmt::format("{}: cannot be mapped into memory", name), errno);
  madvise(data, bytes, MADV_SEQUENTIAL);
  return MappedFile({static_cast<const std::byte*>(data), bytes});
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void MappedFile::will_read(std::span<const std::byte> range) {
  if (range.empty()) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(range.data()) / page_bytes() * page_bytes();
  const uintptr_t end = reinterpret_cast<uintptr_t>(range.data()) + range.size();
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_WILLNEED);
}

void MappedFile::release(std::span<const std::byte> range) {
  const uintptr_t page = page_bytes();
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(range.data()) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(range.data()) + range.size()) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace plait
