// What this machine can do at best, measured: the denominators of `plait bench`.
//
// Called from the thread that owns the pool; uses all of its threads.
#pragma once

#include <cstddef>
#include <string>

#include "base/thread_pool.h"

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

// Takes about `seconds` for each figure; the best of several passes counts.
MachineProfile measure_machine(ThreadPool& pool, double seconds);

}  // namespace plait
