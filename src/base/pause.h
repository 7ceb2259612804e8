// What a thread executes between two looks at a value that another thread is about to change.
#pragma once

namespace plait {

// A few dozen cycles in which the core leaves its resources to others.
inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace plait
