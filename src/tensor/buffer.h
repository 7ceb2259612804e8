// Owned memory. A Buffer is movable, zero-filled, 64-byte aligned; large ones ask for transparent huge pages.
// Host memory only; device buffers will be a second kind with the same interface. Not thread safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace plait {

class Buffer {
 public:
  Buffer() = default;
  // Aborts with a clear message if the operating system has no memory left: sizes are planned before they are
  // allocated.
  explicit Buffer(size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  void* data() { return data_; }
  const void* data() const { return data_; }
  template <typename T>
  T* as() {
    return static_cast<T*>(data_);
  }
  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data_);
  }
  size_t size_bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace plait
