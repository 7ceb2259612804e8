// What this machine can do at best, measured: the denominators of `plait bench`.
//
// A MachineProbe belongs to the thread that owns the pool, and uses all of the pool's threads.
#pragma once

#include <cstddef>
#include <string>

#include "base/thread_pool.h"
#include "kernels/context.h"
#include "tensor/buffer.h"

namespace plait {

struct MachineProfile {
  std::string cpu;  // "Intel(R) Xeon(R) Processor @ 2.50GHz"
  int threads = 0;
  size_t last_level_cache_bytes = 0;  // of all sockets; 0: unknown
  double read_bandwidth = 0;          // bytes/s from memory, all threads reading
  double f32_flops = 0;               // FLOP/s of fused multiply-adds on registers, all threads
  std::string f32_instruction;
  double bf16_flops = 0;  // FLOP/s of the best instruction for bfloat16 inputs; f32's where no other is faster
  std::string bf16_instruction;
};

// What the machine gives at the moment: one that is shared with others does not always give the same.
struct Ceilings {
  double read_bandwidth = 0;  // bytes/s
  double flops = 0;           // FLOP/s for the activations in question
};

// Holds the memory that it reads, half a GiB or eight times the caches.
class MachineProbe {
 public:
  explicit MachineProbe(ThreadPool& pool);

  // These take about `seconds` for each figure; the best of several passes counts.
  MachineProfile profile(double seconds);
  Ceilings ceilings(kernels::Activation activation, double seconds);

 private:
  double read_bandwidth(double seconds);
  double flops(double (*kernel)(int64_t rounds), double seconds);

  ThreadPool& pool_;
  size_t cache_bytes_;
  Buffer memory_;
  bool use_bf16_dot_product_ = false;  // profile() found it faster
};

}  // namespace plait
