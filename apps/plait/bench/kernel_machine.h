// A GPU with what is needed to time kernels on it. Belongs to the main thread.
#pragma once

#include <filesystem>
#include <memory>

#include "bench/bench.h"
#include "bench/kernel_timer.h"
#include "jit/compiler.h"

namespace plait {

struct KernelMachine {
  std::unique_ptr<cuda::Device> device;
  cuda::DeviceModel model;  // without a table
  std::unique_ptr<jit::Compiler> compiler;
  std::unique_ptr<jit::KernelCache> cache;
  std::unique_ptr<KernelTimer> timer;

  std::string compiler_text() const;  // "nvrtc 13.0.88"
};

// kNotFound, kUnsupported: what is missing here, and what to do.
Result<KernelMachine> open_kernel_machine(const std::filesystem::path& cache_directory, const TimerOptions& options);

}  // namespace plait
