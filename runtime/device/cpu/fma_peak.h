// What the processor could do at most: fused multiply-adds on registers.
#pragma once

#include <cstdint>

namespace omni::cpu {

// GFLOP/s of fp32 that `num_threads` threads reach together, on vectors as wide as the kernels'
// (processor.h). Takes some 50 ms; the best of many short stretches of processor time, so that
// other programs on the machine hardly change it.
double MeasureFmaPeak(int32_t num_threads);

}  // namespace omni::cpu
