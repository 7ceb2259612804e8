// Turns a kernel's source into machine code.
//
// A Compiler is made once and outlives those who use it; compile may be called from several threads at once. The one
// that production uses is NVRTC (nvrtc.h); tests bring others.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/error.h"
#include "jit/kernel_source.h"

namespace plait::jit {

// What a kernel takes from the multiprocessor it runs on.
struct KernelResources {
  int32_t registers = 0;          // per thread
  int32_t shared_bytes = 0;       // per block, declared with a fixed size; dynamic shared memory comes at the launch
  int32_t stack_bytes = 0;        // per thread, in local memory
  int32_t spill_store_bytes = 0;  // per thread: registers that did not suffice
  int32_t spill_load_bytes = 0;

  bool operator==(const KernelResources&) const = default;
};

struct CompiledKernel {
  std::string cubin;  // an ELF file for the architecture
  // Absent when the compiler did not say it in the words that we know: a reason to look, not to stop.
  std::optional<KernelResources> resources;
  std::string remarks;  // warnings and advice of the compiler, a line each, bounded; empty is best

  bool operator==(const CompiledKernel&) const = default;
};

class Compiler {
 public:
  virtual ~Compiler() = default;

  virtual const CompilerIdentity& identity() const = 0;
  // kInvalid: the source is not valid or does not compile; the message has the kernel's name and the compiler's log,
  // the first error first. kUnsupported: an architecture that the compiler does not know; the message lists those that
  // it knows. kExhausted: no memory.
  virtual Result<CompiledKernel> compile(const KernelSource& source) = 0;
};

}  // namespace plait::jit
