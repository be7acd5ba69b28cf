#pragma once

namespace omni::cpu {

// True if this processor runs the AVX-512 builds of our kernels (vector_math.h).
inline bool HasAvx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

}  // namespace omni::cpu
