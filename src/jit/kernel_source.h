// What a kernel is before it is compiled, and the name of that content: its key.
//
// A KernelSource is a value and says everything that its cubin depends on: the text includes nothing (there is no
// include path, and validate refuses the directive), sizes are constants that are baked in, and only the compiler comes
// from elsewhere. So equal keys mean equal kernels, on every host: a cubin that another process, host or container
// image built under the same key may be used without asking more. Pure functions; safe from any thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/sha256.h"

namespace plait::jit {

// Part of every key and of every cache entry. To be raised when the canonical form below changes, when the layout of
// an entry does (cache_entry.h), or what the compiler is told beyond a source's own options (nvrtc.cpp). Programs of
// different versions then share a directory without seeing each other's entries.
inline constexpr uint32_t kKernelFormat = 1;

struct KernelSource {
  std::string name;   // for people, in logs and file names; no part of the key: "fp8_gemm_n7168_k2048"
  std::string text;   // CUDA C++ without #include
  std::string entry;  // the one kernel, declared extern "C" __global__
  // Baked in before the text, in alphabetical order: `constexpr int NAME = VALUE;` where the value fits, else long long
  std::map<std::string, int64_t> constants;
  std::string architecture = "sm_90a";  // a real one: the result is machine code
  std::vector<std::string> options;     // for the compiler, in this order: "--use_fast_math"
};

struct CompilerIdentity {
  std::string name;     // "nvrtc"
  std::string version;  // "13.0.88": releases that may give different code differ here

  bool operator==(const CompilerIdentity&) const = default;
};

// kInvalid, naming the kernel: a name, entry or constant that is no identifier, an architecture that is not sm_NN, a
// text that is empty, includes or has NUL bytes, an option that brings in what the key does not see (an include path, a
// precompiled header) or that is the architecture.
Status validate(const KernelSource& source);

// What the compiler reads: the constants, then the text, with line numbers of the text.
std::string translation_unit(const KernelSource& source);

// SHA-256 of everything but the name, in a canonical form. The same on every machine.
Digest kernel_key(const KernelSource& source, const CompilerIdentity& compiler);

}  // namespace plait::jit
