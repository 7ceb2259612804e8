#include "kernels/cuda/device.h"

#include <algorithm>

#include "base/assert.h"

namespace plait::cuda {
namespace {

// CUdevice_attribute
constexpr int kMultiprocessorCount = 16;
constexpr int kClockRate = 13;        // kHz
constexpr int kMemoryClockRate = 36;  // kHz
constexpr int kMemoryBusWidth = 37;   // bits
constexpr int kL2CacheSize = 38;
constexpr int kComputeCapabilityMajor = 75;
constexpr int kComputeCapabilityMinor = 76;
constexpr int kMaxSharedMemoryPerBlockOptin = 97;
// CUfunction_attribute
constexpr int kMaxDynamicSharedSizeBytes = 8;

constexpr unsigned kNonBlocking = 1;  // CU_STREAM_NON_BLOCKING: does not wait for the default stream

}  // namespace

// -- Device

Result<std::unique_ptr<Device>> Device::open(int ordinal) {
  const Result<Driver>& loaded = load_driver();
  if (loaded.has_error()) return loaded.error();
  const Driver& driver = loaded.value();
  int count = 0, handle = 0;
  PLAIT_RETURN_IF_ERROR(driver.check(driver.DeviceGetCount(&count), "counting GPUs"));
  if (ordinal < 0 || ordinal >= count)
    return invalid(fmt::format("there is no GPU {}: the driver shows {}, numbered from 0", ordinal, count));
  PLAIT_RETURN_IF_ERROR(driver.check(driver.DeviceGet(&handle, ordinal), fmt::format("opening GPU {}", ordinal)));
  std::unique_ptr<Device> device(new Device(driver, handle));
  PLAIT_RETURN_IF_ERROR(driver.check(driver.DevicePrimaryCtxRetain(&device->context_, handle),
                                     fmt::format("making a context on GPU {}", ordinal)));
  PLAIT_RETURN_IF_ERROR(device->use_here());
  PLAIT_RETURN_IF_ERROR(device->read_properties());
  return device;
}

Device::~Device() {
  if (context_ != nullptr) driver_.DevicePrimaryCtxRelease(handle_);
}

Status Device::use_here() const {
  return driver_.check(driver_.CtxSetCurrent(context_), "making a GPU's context current");
}

Status Device::read_properties() {
  char name[128] = {};
  size_t bytes = 0;
  int major = 0, minor = 0, l2 = 0, shared = 0;
  const auto read = [&](int attribute, int& value) {
    return driver_.check(driver_.DeviceGetAttribute(&value, attribute, handle_), "reading a GPU's properties");
  };
  PLAIT_RETURN_IF_ERROR(driver_.check(driver_.DeviceGetName(name, sizeof name - 1, handle_), "reading a GPU's name"));
  PLAIT_RETURN_IF_ERROR(driver_.check(driver_.DeviceTotalMem(&bytes, handle_), "reading a GPU's memory"));
  PLAIT_RETURN_IF_ERROR(read(kMultiprocessorCount, properties_.multiprocessors));
  PLAIT_RETURN_IF_ERROR(read(kComputeCapabilityMajor, major));
  PLAIT_RETURN_IF_ERROR(read(kComputeCapabilityMinor, minor));
  PLAIT_RETURN_IF_ERROR(read(kL2CacheSize, l2));
  PLAIT_RETURN_IF_ERROR(read(kMaxSharedMemoryPerBlockOptin, shared));
  properties_.name = name;
  properties_.compute_capability = major * 10 + minor;
  properties_.memory_bytes = static_cast<int64_t>(bytes);
  properties_.l2_bytes = l2;
  properties_.shared_bytes_per_block = shared;
  // Not every driver says these: no reason to fail.
  const auto read_if_said = [&](int attribute) {
    int value = 0;
    return driver_.DeviceGetAttribute(&value, attribute, handle_) == 0 ? static_cast<double>(value) : 0;
  };
  properties_.clock_hz = read_if_said(kClockRate) * 1e3;
  // Two transfers in a cycle.
  properties_.memory_bandwidth = 2 * read_if_said(kMemoryClockRate) * 1e3 * read_if_said(kMemoryBusWidth) / 8;
  return {};
}

// -- Stream

Result<Stream> Stream::create(const Device& device) {
  StreamHandle* handle = nullptr;
  PLAIT_RETURN_IF_ERROR(device.driver().check(device.driver().StreamCreate(&handle, kNonBlocking), "making a stream"));
  return Stream(device.driver(), handle);
}

Stream::~Stream() {
  if (handle_ != nullptr) driver_.StreamDestroy(handle_);
}

Status Stream::wait() const {
  return driver_.check(driver_.StreamSynchronize(handle_), "waiting for a stream");
}

// -- Event

Result<Event> Event::create(const Device& device) {
  EventHandle* handle = nullptr;
  PLAIT_RETURN_IF_ERROR(device.driver().check(device.driver().EventCreate(&handle, 0), "making an event"));
  return Event(device.driver(), handle);
}

Event::~Event() {
  if (handle_ != nullptr) driver_.EventDestroy(handle_);
}

Status Event::record(const Stream& stream) const {
  return driver_.check(driver_.EventRecord(handle_, stream.handle()), "recording an event");
}

Status Event::wait() const {
  return driver_.check(driver_.EventSynchronize(handle_), "waiting for an event");
}

Result<double> Event::seconds_since(const Event& begin) const {
  float milliseconds = 0;
  PLAIT_RETURN_IF_ERROR(
      driver_.check(driver_.EventElapsedTime(&milliseconds, begin.handle_, handle_), "reading two events"));
  return static_cast<double>(milliseconds) * 1e-3;
}

// -- DeviceBuffer

Result<DeviceBuffer> DeviceBuffer::allocate(const Device& device, size_t bytes) {
  DeviceBuffer buffer;
  buffer.driver_ = &device.driver();
  buffer.bytes_ = bytes;
  if (bytes == 0) return buffer;
  PLAIT_RETURN_IF_ERROR(device.driver().check(device.driver().MemAlloc(&buffer.pointer_, bytes),
                                              fmt::format("allocating {} bytes on the GPU", bytes)));
  return buffer;
}

DeviceBuffer::~DeviceBuffer() {
  if (pointer_ != 0) driver_->MemFree(pointer_);
}

Status DeviceBuffer::write(const void* from, size_t bytes, const Stream& stream, size_t to) {
  PLAIT_ASSERT(to <= bytes_ && bytes <= bytes_ - to, "more than the buffer holds");
  if (bytes == 0) return {};
  return driver_->check(driver_->MemcpyHtoDAsync(pointer_ + to, from, bytes, stream.handle()), "copying to the GPU");
}

Status DeviceBuffer::read(void* to, size_t bytes, const Stream& stream, size_t from) const {
  PLAIT_ASSERT(from <= bytes_ && bytes <= bytes_ - from, "more than the buffer holds");
  if (bytes == 0) return {};
  return driver_->check(driver_->MemcpyDtoHAsync(to, pointer_ + from, bytes, stream.handle()), "copying from the GPU");
}

Status DeviceBuffer::copy(size_t to, size_t from, size_t bytes, const Stream& stream) {
  PLAIT_ASSERT(std::max(to, from) <= bytes_ && bytes <= bytes_ - std::max(to, from), "more than the buffer holds");
  if (bytes == 0) return {};
  return driver_->check(driver_->MemcpyDtoDAsync(pointer_ + to, pointer_ + from, bytes, stream.handle()),
                        "copying on the GPU");
}

Status DeviceBuffer::fill(uint8_t value, const Stream& stream) {
  return fill(value, stream, 0, bytes_);
}

Status DeviceBuffer::fill(uint8_t value, const Stream& stream, size_t from, size_t bytes) {
  PLAIT_ASSERT(from <= bytes_ && bytes <= bytes_ - from, "more than the buffer holds");
  if (bytes == 0) return {};
  return driver_->check(driver_->MemsetD8Async(pointer_ + from, value, bytes, stream.handle()), "filling GPU memory");
}

// -- LoadedKernel

Result<LoadedKernel> LoadedKernel::load(const Device& device, const std::string& cubin, const std::string& entry,
                                        int dynamic_shared_bytes) {
  const Driver& driver = device.driver();
  ModuleHandle* module = nullptr;
  FunctionHandle* function = nullptr;
  PLAIT_RETURN_IF_ERROR(
      driver.check(driver.ModuleLoadData(&module, cubin.data()), fmt::format("loading kernel '{}'", entry)));
  LoadedKernel kernel(driver, module, nullptr, dynamic_shared_bytes);
  PLAIT_RETURN_IF_ERROR(driver.check(driver.ModuleGetFunction(&function, module, entry.c_str()),
                                     fmt::format("finding kernel '{}' in its module", entry)));
  PLAIT_RETURN_IF_ERROR(
      driver.check(driver.FuncSetAttribute(function, kMaxDynamicSharedSizeBytes, dynamic_shared_bytes),
                   fmt::format("{} bytes of shared memory for kernel '{}'", dynamic_shared_bytes, entry)));
  kernel.function_ = function;
  return kernel;
}

LoadedKernel::~LoadedKernel() {
  if (module_ != nullptr) driver_.ModuleUnload(module_);
}

Status LoadedKernel::launch(Grid blocks, int threads, std::span<void* const> arguments, const Stream& stream) const {
  return driver_.check(
      driver_.LaunchKernel(function_, static_cast<unsigned>(blocks.x), static_cast<unsigned>(blocks.y), 1,
                           static_cast<unsigned>(threads), 1, 1, static_cast<unsigned>(shared_bytes_), stream.handle(),
                           const_cast<void**>(arguments.data()), nullptr),
      "launching a kernel");
}

}  // namespace plait::cuda
