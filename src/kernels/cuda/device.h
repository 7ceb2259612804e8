// One GPU: its properties, memory, streams, kernels. Owners of what the driver makes, each closed by its destructor.
//
// A Device holds the GPU's primary context and outlives everything made on it. The context is made current for the
// thread that opens it; other threads that use the device call use_here() first. Work on a Stream runs in order, in the
// background: whatever it reads or writes must live until the stream was waited for.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/driver.h"

namespace plait::cuda {

// What kernels are chosen by.
struct DeviceProperties {
  std::string name;            // "NVIDIA H200"
  int compute_capability = 0;  // 90
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
  int64_t l2_bytes = 0;
  int64_t shared_bytes_per_block = 0;  // the most that a block can ask for
  double clock_hz = 0;                 // the highest; 0 where the driver does not say it
  double memory_bandwidth = 0;         // bytes/s, by clock and width; 0 where the driver does not say it
};

class Device {
 public:
  // Errors: load_driver's; kInvalid: there is no GPU of that number.
  static Result<std::unique_ptr<Device>> open(int ordinal);
  ~Device();

  const DeviceProperties& properties() const { return properties_; }
  const Driver& driver() const { return driver_; }
  Status use_here() const;

 private:
  Device(const Driver& driver, int handle) : driver_(driver), handle_(handle) {}
  Status read_properties();

  const Driver& driver_;
  int handle_;
  ContextHandle* context_ = nullptr;
  DeviceProperties properties_;
};

class Stream {
 public:
  static Result<Stream> create(const Device& device);
  ~Stream();
  Stream(Stream&& other) noexcept : driver_(other.driver_), handle_(std::exchange(other.handle_, nullptr)) {}

  StreamHandle* handle() const { return handle_; }
  Status wait() const;

 private:
  Stream(const Driver& driver, StreamHandle* handle) : driver_(driver), handle_(handle) {}
  const Driver& driver_;
  StreamHandle* handle_;
};

class Event {
 public:
  static Result<Event> create(const Device& device);
  ~Event();
  Event(Event&& other) noexcept : driver_(other.driver_), handle_(std::exchange(other.handle_, nullptr)) {}

  Status record(const Stream& stream) const;
  Status wait() const;
  // Seconds between two events that have passed.
  Result<double> seconds_since(const Event& begin) const;

 private:
  Event(const Driver& driver, EventHandle* handle) : driver_(driver), handle_(handle) {}
  const Driver& driver_;
  EventHandle* handle_;
};

// Memory of the device; its contents are undefined at first.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  static Result<DeviceBuffer> allocate(const Device& device, size_t bytes);
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(driver_, other.driver_);
    std::swap(pointer_, other.pointer_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  DevicePointer pointer() const { return pointer_; }
  size_t size_bytes() const { return bytes_; }
  Status write(const void* from, size_t bytes, const Stream& stream, size_t to = 0);
  Status read(void* to, size_t bytes, const Stream& stream, size_t from = 0) const;
  Status copy(size_t to, size_t from, size_t bytes, const Stream& stream);  // within the buffer
  Status fill(uint8_t value, const Stream& stream);
  Status fill(uint8_t value, const Stream& stream, size_t from, size_t bytes);

 private:
  const Driver* driver_ = nullptr;
  DevicePointer pointer_ = 0;
  size_t bytes_ = 0;
};

// A kernel's machine code on the device.
class LoadedKernel {
 public:
  // `dynamic_shared_bytes`: what every launch takes beside the kernel's own.
  static Result<LoadedKernel> load(const Device& device, const std::string& cubin, const std::string& entry,
                                   int dynamic_shared_bytes);
  ~LoadedKernel();
  LoadedKernel(LoadedKernel&& other) noexcept
      : driver_(other.driver_),
        module_(std::exchange(other.module_, nullptr)),
        function_(other.function_),
        shared_bytes_(other.shared_bytes_) {}

  struct Grid {
    int x = 1;
    int y = 1;
  };
  // `arguments`: pointers to the kernel's parameters, in their order.
  Status launch(Grid blocks, int threads, std::span<void* const> arguments, const Stream& stream) const;

 private:
  LoadedKernel(const Driver& driver, ModuleHandle* module, FunctionHandle* function, int shared_bytes)
      : driver_(driver), module_(module), function_(function), shared_bytes_(shared_bytes) {}
  const Driver& driver_;
  ModuleHandle* module_;
  FunctionHandle* function_;
  int shared_bytes_;
};

}  // namespace plait::cuda
