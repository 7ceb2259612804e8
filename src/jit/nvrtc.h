// The compiler of CUDA kernels inside this process: NVRTC, which needs neither a GPU nor a driver.
//
// compile may be called from several threads at once, and they run beside each other: there is no lock within NVRTC
// that counts (two threads on two cores are 1.9 times as fast as one; nvrtc_test.cpp prints it). A call cannot be
// interrupted.
#pragma once

#include <filesystem>
#include <memory>

#include "base/error.h"
#include "jit/compiler.h"

namespace plait::jit {

// `library`: libnvrtc or the folder that has it; empty: the usual places (nvrtc_library.h). The identity's version has
// all three numbers of the release ("13.0.88"). Takes some tens of milliseconds. Errors: those of load_nvrtc_library.
Result<std::unique_ptr<Compiler>> load_nvrtc(const std::filesystem::path& library = {});

}  // namespace plait::jit
