// Two kernels for sm_90a of the kind that plait has: no headers, constants baked in, instructions as inline PTX.
#pragma once

#include "jit/kernel_source.h"

namespace plait::jit {

// y[i] = kScale * x[i]
inline KernelSource scale_kernel(int64_t threads = 128) {
  KernelSource source;
  source.name = "scale_" + std::to_string(threads);
  source.entry = "scale";
  source.constants = {{"kThreads", threads}, {"kScale", 3}};
  source.text = R"cuda(
extern "C" __global__ void __launch_bounds__(kThreads) scale(float* y, const float* x, int count) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i < count) y[i] = kScale * x[i];
}
)cuda";
  return source;
}

// One warpgroup: an FP8 product of 64 rows and 64 columns over kSteps slices of 32, tiles in shared memory.
inline KernelSource wgmma_kernel(int64_t steps = 4) {
  KernelSource source;
  source.name = "wgmma_fp8_" + std::to_string(steps);
  source.entry = "wgmma_fp8";
  source.constants = {{"kSteps", steps}, {"kRows", 64}, {"kColumns", 64}, {"kSlice", 32}};
  source.text = R"cuda(
using uint64 = unsigned long long;

// Descriptor of a tile in shared memory: no swizzle, core matrices of 8 rows and 16 bytes.
__device__ uint64 tile(const unsigned char* at) {
  unsigned address;
  asm("{ .reg .u64 wide; cvta.to.shared.u64 wide, %1; cvt.u32.u64 %0, wide; }" : "=r"(address) : "l"(at));
  return uint64{(address & 0x3ffff) >> 4} | uint64{128 >> 4} << 16 | uint64{256 >> 4} << 32;
}

extern "C" __global__ void __launch_bounds__(128) wgmma_fp8(float* d, const unsigned char* a, const unsigned char* b) {
  __shared__ alignas(128) unsigned char a_tile[kRows * kSlice];
  __shared__ alignas(128) unsigned char b_tile[kColumns * kSlice];
  float sum[32] = {};
  for (int step = 0; step < kSteps; ++step) {
    for (int i = threadIdx.x; i < kRows * kSlice; i += 128) a_tile[i] = a[step * kRows * kSlice + i];
    for (int i = threadIdx.x; i < kColumns * kSlice; i += 128) b_tile[i] = b[step * kColumns * kSlice + i];
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, 1, 1, 1;"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]), "+f"(sum[4]), "+f"(sum[5]), "+f"(sum[6]),
          "+f"(sum[7]), "+f"(sum[8]), "+f"(sum[9]), "+f"(sum[10]), "+f"(sum[11]), "+f"(sum[12]), "+f"(sum[13]),
          "+f"(sum[14]), "+f"(sum[15]), "+f"(sum[16]), "+f"(sum[17]), "+f"(sum[18]), "+f"(sum[19]), "+f"(sum[20]),
          "+f"(sum[21]), "+f"(sum[22]), "+f"(sum[23]), "+f"(sum[24]), "+f"(sum[25]), "+f"(sum[26]), "+f"(sum[27]),
          "+f"(sum[28]), "+f"(sum[29]), "+f"(sum[30]), "+f"(sum[31])
        : "l"(tile(a_tile)), "l"(tile(b_tile)));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    __syncthreads();
  }
  for (int i = 0; i < 32; ++i) d[i * 128 + threadIdx.x] = sum[i];
}
)cuda";
  return source;
}

}  // namespace plait::jit
