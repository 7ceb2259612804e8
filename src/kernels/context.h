// What every operation needs to run on a CPU rank.
//
// Each operation has a header of its own in this directory and two implementations behind it: `reference` (plain loops
// in float32, kept as the specification and as the oracle of the tests) and `fast` (SIMD, chosen at run time for the
// machine). Both keep one promise: a result row depends on that row's inputs alone, never on how many other rows are in
// the call, on their place, or on the number of threads. Batching, chunking and replay of a request therefore give the
// same bits.
//
// Activations are float32 in memory. With Activation::kBFloat16 the inputs of matrix products are rounded to bfloat16
// first, and the KV cache holds bfloat16.
#pragma once

#include <cstddef>

#include "base/thread_pool.h"
#include "tensor/buffer.h"

namespace plait::kernels {

// kExact computes in numbers so coarse that no sum is ever rounded, whatever its order: a test brings it
// (set_exact_operations), no flag selects it. It stores weights as the reference does.
enum class Implementation { kReference, kFast, kExact };
enum class Activation { kFloat32, kBFloat16 };

// Scratch memory that grows to what the largest call needed and is then reused. One per rank.
class Workspace {
 public:
  // `bytes` of 64-byte aligned memory with undefined contents, valid until the next call with the same slot.
  void* get(int slot, size_t bytes);
  template <typename T>
  T* get_array(int slot, int64_t count) {
    return static_cast<T*>(get(slot, static_cast<size_t>(count) * sizeof(T)));
  }
  // Held by all slots.
  size_t size_bytes() const;

 private:
  static constexpr int kSlots = 32;
  Buffer buffers_[kSlots];
};

struct Context {
  ThreadPool* pool = nullptr;
  Workspace* workspace = nullptr;  // operations use slots 16..31, their callers 0..15
  Implementation implementation = Implementation::kFast;
  Activation activation = Activation::kFloat32;
};

}  // namespace plait::kernels
