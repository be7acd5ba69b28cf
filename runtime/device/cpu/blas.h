#pragma once

namespace omni::cpu {

// True if this processor runs the AVX-512 builds of our kernels.
bool HasAvx512();

// Lets OpenBLAS use its AVX-512 kernels where it would not by itself. It chooses its kernels by
// processor model, and takes any model newer than itself for a Haswell: half the speed of what
// e.g. an AMD Zen 5 can do (measured: 135 instead of 250 GFLOP/s a core). OPENBLAS_CORETYPE in
// the environment overrules us as it does OpenBLAS. Acts once per process; call it before the
// first product.
void UseWidestBlasKernels();

}  // namespace omni::cpu
