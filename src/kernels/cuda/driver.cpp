#include "kernels/cuda/driver.h"

#include <dlfcn.h>

namespace plait::cuda {
namespace {

constexpr int kSuccess = 0;
constexpr int kOutOfMemory = 2;
constexpr int kNoDevice = 100;
constexpr int kOldestVersion = 12000;  // tensor maps and sm_90a came with CUDA 12.0

template <typename Function>
void bind(void* library, const char* name, Function*& function, const char*& missing) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  if (function == nullptr && missing == nullptr) missing = name;
}

// _v2: what the driver's header makes of the plain name.
const char* bind_all(void* library, Driver& driver) {
  const char* missing = nullptr;
  const auto need = [&](const char* name, auto& function) { bind(library, name, function, missing); };
  need("cuInit", driver.Init);
  need("cuGetErrorName", driver.GetErrorName);
  need("cuGetErrorString", driver.GetErrorString);
  need("cuDriverGetVersion", driver.DriverGetVersion);
  need("cuDeviceGetCount", driver.DeviceGetCount);
  need("cuDeviceGet", driver.DeviceGet);
  need("cuDeviceGetName", driver.DeviceGetName);
  need("cuDeviceGetAttribute", driver.DeviceGetAttribute);
  need("cuDeviceTotalMem_v2", driver.DeviceTotalMem);
  need("cuDevicePrimaryCtxRetain", driver.DevicePrimaryCtxRetain);
  need("cuDevicePrimaryCtxRelease_v2", driver.DevicePrimaryCtxRelease);
  need("cuCtxSetCurrent", driver.CtxSetCurrent);
  need("cuMemAlloc_v2", driver.MemAlloc);
  need("cuMemFree_v2", driver.MemFree);
  need("cuMemcpyHtoDAsync_v2", driver.MemcpyHtoDAsync);
  need("cuMemcpyDtoHAsync_v2", driver.MemcpyDtoHAsync);
  need("cuMemcpyDtoDAsync_v2", driver.MemcpyDtoDAsync);
  need("cuMemsetD8Async", driver.MemsetD8Async);
  need("cuStreamCreate", driver.StreamCreate);
  need("cuStreamDestroy_v2", driver.StreamDestroy);
  need("cuStreamSynchronize", driver.StreamSynchronize);
  need("cuEventCreate", driver.EventCreate);
  need("cuEventDestroy_v2", driver.EventDestroy);
  need("cuEventRecord", driver.EventRecord);
  need("cuEventSynchronize", driver.EventSynchronize);
  need("cuEventElapsedTime", driver.EventElapsedTime);
  need("cuModuleLoadData", driver.ModuleLoadData);
  need("cuModuleUnload", driver.ModuleUnload);
  need("cuModuleGetFunction", driver.ModuleGetFunction);
  need("cuFuncSetAttribute", driver.FuncSetAttribute);
  need("cuLaunchKernel", driver.LaunchKernel);
  need("cuTensorMapEncodeTiled", driver.TensorMapEncodeTiled);
  return missing;
}

Result<Driver> load() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr)
    return not_found(
        fmt::format("no CUDA driver here: install NVIDIA's driver, which has libcuda.so.1 ({})", dlerror()));
  Driver driver;
  const char* missing = bind_all(library, driver);
  int version = 0;
  if (driver.DriverGetVersion != nullptr) driver.DriverGetVersion(&version);
  if (missing != nullptr || version < kOldestVersion)
    return unsupported(fmt::format("the CUDA driver here is for CUDA {}.{}; plait needs one for 12.0 or newer{}",
                                   version / 1000, version % 1000 / 10,
                                   missing != nullptr ? fmt::format(" (it has no {})", missing) : ""));
  if (const int result = driver.Init(0); result != kSuccess)
    return result == kNoDevice ? unsupported("there is a CUDA driver here, but no GPU")
                               : driver.check(result, "starting the CUDA driver").error();
  return driver;
}

}  // namespace

Status Driver::check(int result, const std::string& what) const {
  if (result == kSuccess) return {};
  const char *name = nullptr, *text = nullptr;
  GetErrorName(result, &name);
  GetErrorString(result, &text);
  std::string message = fmt::format("{}: {} ({})", what, text != nullptr ? text : "unknown error",
                                    name != nullptr ? name : std::to_string(result));
  return result == kOutOfMemory ? exhausted(std::move(message)) : internal(std::move(message));
}

const Result<Driver>& load_driver() {
  static const Result<Driver> driver = load();
  return driver;
}

}  // namespace plait::cuda
