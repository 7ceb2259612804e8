// libnvrtc, found and loaded while the program runs: plait is built without CUDA and runs without it.
//
// An NvrtcLibrary is a table of the functions that we use, declared here because they are few and their C interface has
// been the same since CUDA 11.1. The library stays loaded until the process ends: it keeps threads and state of its own
// that do not survive being unloaded. Const after loading; safe from any thread.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"

namespace plait::jit {

struct NvrtcProgram;

struct NvrtcLibrary {
  std::string path;  // where it was found

  int (*version)(int* major, int* minor) = nullptr;
  int (*count_architectures)(int* count) = nullptr;
  int (*architectures)(int* numbers) = nullptr;  // 90 for sm_90 and sm_90a
  const char* (*error_text)(int result) = nullptr;
  int (*create)(NvrtcProgram** program, const char* text, const char* name, int headers,
                const char* const* header_texts, const char* const* header_names) = nullptr;
  int (*compile)(NvrtcProgram* program, int options, const char* const* texts) = nullptr;
  int (*log_bytes)(NvrtcProgram* program, size_t* bytes) = nullptr;  // with the final NUL
  int (*log)(NvrtcProgram* program, char* text) = nullptr;
  int (*ptx_bytes)(NvrtcProgram* program, size_t* bytes) = nullptr;
  int (*ptx)(NvrtcProgram* program, char* text) = nullptr;
  int (*cubin_bytes)(NvrtcProgram* program, size_t* bytes) = nullptr;
  int (*cubin)(NvrtcProgram* program, char* bytes) = nullptr;
  int (*destroy)(NvrtcProgram** program) = nullptr;
};

// Results that we tell from others.
inline constexpr int kNvrtcSuccess = 0;
inline constexpr int kNvrtcOutOfMemory = 1;

// In order: `given` (the library, or a folder that has it: a CUDA toolkit, or the site-packages of the PyPI wheel
// nvidia-cuda-nvrtc), PLAIT_NVRTC in the same way, then the loader's own path, lib/ beside the program,
// /usr/local/cuda*/lib64. What was given is meant: nothing else is tried. kNotFound, naming every place that was tried
// and what to install; kUnsupported: too old, or no libnvrtc at all.
Result<NvrtcLibrary> load_nvrtc_library(const std::filesystem::path& given);

// The files that would be tried, in that order; a bare name is the loader's to look for.
std::vector<std::filesystem::path> nvrtc_candidates(const std::filesystem::path& given);

}  // namespace plait::jit
