// Instruction sets that the SIMD sources are compiled for; to be included before <hwy/foreach_target.h>.
//
// Every x86-64-v2 machine has SSSE3, and SSE4 would be a copy that is no faster; AVX3_DL adds nothing that float32
// arithmetic uses. SVE vectors have no size at compile time.
#pragma once

#define HWY_DISABLED_TARGETS (HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
