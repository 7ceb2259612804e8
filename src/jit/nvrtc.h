// The compiler of CUDA kernels inside this process: NVRTC, which needs neither a GPU nor a driver.
//
// compile may be called from several threads at once, and they do run beside each other: see docs/decisions.md for what
// two threads gain. One call holds some tens of megabytes while it runs and cannot be interrupted.
#pragma once

#include <filesystem>
#include <memory>

#include "base/error.h"
#include "jit/compiler.h"

namespace plait::jit {

// `library`: libnvrtc or the folder that has it; empty: the usual places (nvrtc_library.h). The identity's version is
// that of CUDA and the build of the library ("13.0 65be0db342ad51a0"), because releases that differ only in the third
// number, which the library does not tell, give different code. Errors: those of load_nvrtc_library.
Result<std::unique_ptr<Compiler>> load_nvrtc(const std::filesystem::path& library = {});

}  // namespace plait::jit
