// The CUDA driver (libcuda), found and loaded while the program runs: plait is built without CUDA, and runs on machines
// without it.
//
// A Driver is a table of the functions that we use, declared here because they are few and their C interface does not
// change; it is loaded once and stays until the process ends. Const after loading; safe from any thread. Names are the
// driver's own without "cu". Everything else about devices is in device.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/error.h"

namespace plait::cuda {

// The driver's own types, by what they are to the ABI.
using DevicePointer = uint64_t;
struct ContextHandle;
struct ModuleHandle;
struct FunctionHandle;
struct StreamHandle;
struct EventHandle;

// CUtensorMap: what the copy engine knows of a tensor in device memory.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

struct Driver {
  int (*Init)(unsigned flags) = nullptr;
  int (*GetErrorName)(int result, const char** text) = nullptr;
  int (*GetErrorString)(int result, const char** text) = nullptr;
  int (*DriverGetVersion)(int* version) = nullptr;
  int (*DeviceGetCount)(int* count) = nullptr;
  int (*DeviceGet)(int* device, int ordinal) = nullptr;
  int (*DeviceGetName)(char* name, int bytes, int device) = nullptr;
  int (*DeviceGetAttribute)(int* value, int attribute, int device) = nullptr;
  int (*DeviceTotalMem)(size_t* bytes, int device) = nullptr;
  int (*DevicePrimaryCtxRetain)(ContextHandle** context, int device) = nullptr;
  int (*DevicePrimaryCtxRelease)(int device) = nullptr;
  int (*CtxSetCurrent)(ContextHandle* context) = nullptr;
  int (*MemAlloc)(DevicePointer* pointer, size_t bytes) = nullptr;
  int (*MemFree)(DevicePointer pointer) = nullptr;
  int (*MemcpyHtoDAsync)(DevicePointer to, const void* from, size_t bytes, StreamHandle* stream) = nullptr;
  int (*MemcpyDtoHAsync)(void* to, DevicePointer from, size_t bytes, StreamHandle* stream) = nullptr;
  int (*MemcpyDtoDAsync)(DevicePointer to, DevicePointer from, size_t bytes, StreamHandle* stream) = nullptr;
  int (*MemsetD8Async)(DevicePointer to, unsigned char value, size_t bytes, StreamHandle* stream) = nullptr;
  int (*StreamCreate)(StreamHandle** stream, unsigned flags) = nullptr;
  int (*StreamDestroy)(StreamHandle* stream) = nullptr;
  int (*StreamSynchronize)(StreamHandle* stream) = nullptr;
  int (*EventCreate)(EventHandle** event, unsigned flags) = nullptr;
  int (*EventDestroy)(EventHandle* event) = nullptr;
  int (*EventRecord)(EventHandle* event, StreamHandle* stream) = nullptr;
  int (*EventSynchronize)(EventHandle* event) = nullptr;
  int (*EventElapsedTime)(float* milliseconds, EventHandle* begin, EventHandle* end) = nullptr;
  int (*ModuleLoadData)(ModuleHandle** module, const void* image) = nullptr;
  int (*ModuleUnload)(ModuleHandle* module) = nullptr;
  int (*ModuleGetFunction)(FunctionHandle** function, ModuleHandle* module, const char* name) = nullptr;
  int (*FuncSetAttribute)(FunctionHandle* function, int attribute, int value) = nullptr;
  int (*LaunchKernel)(FunctionHandle* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                      unsigned block_y, unsigned block_z, unsigned shared_bytes, StreamHandle* stream, void** arguments,
                      void** extra) = nullptr;
  int (*TensorMapEncodeTiled)(TensorMap* map, int data_type, uint32_t rank, void* address, const uint64_t* sizes,
                              const uint64_t* strides_bytes, const uint32_t* box, const uint32_t* element_strides,
                              int interleave, int swizzle, int l2_promotion, int out_of_bounds) = nullptr;

  // Ok for 0; else kInternal with `what`, the driver's sentence and its name for the result. kExhausted: no memory.
  Status check(int result, const std::string& what) const;
};

// kNotFound: no libcuda, with what to install. kUnsupported: too old (its version is named), or there is no GPU. The
// same answer every time.
const Result<Driver>& load_driver();

}  // namespace plait::cuda
