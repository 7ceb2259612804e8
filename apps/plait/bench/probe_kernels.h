// Inner loops of the machine probe, compiled for each instruction set and chosen at run time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace plait {

// XOR of all 64-bit words, so that nobody can skip the reading. bytes: a multiple of 4096, data 64-byte aligned.
uint64_t read_all(const void* data, size_t bytes);

// Fused multiply-adds on registers alone. Returns the floating-point operations it did.
double f32_multiply_adds(int64_t rounds);
const char* f32_instruction();

// The same with bfloat16 dot products (VDPBF16PS), where the machine has them.
bool has_bf16_dot_product();
double bf16_dot_products(int64_t rounds);

}  // namespace plait
