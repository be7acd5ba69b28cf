// One name for a function of fp32 and of fp64.
#pragma once

#include "runtime/device/cuda/kernel.h"

namespace omni::cuda {

__device__ __forceinline__ float Exp(float x) { return expf(x); }
__device__ __forceinline__ double Exp(double x) { return exp(x); }
__device__ __forceinline__ float Log(float x) { return logf(x); }
__device__ __forceinline__ double Log(double x) { return log(x); }
__device__ __forceinline__ float Erf(float x) { return erff(x); }
__device__ __forceinline__ double Erf(double x) { return erf(x); }
__device__ __forceinline__ float Root(float x) { return sqrtf(x); }
__device__ __forceinline__ double Root(double x) { return sqrt(x); }
__device__ __forceinline__ float InverseRoot(float x) { return rsqrtf(x); }
__device__ __forceinline__ double InverseRoot(double x) { return 1.0 / sqrt(x); }

template <typename C>
__device__ __forceinline__ C Sigmoid(C x) {
  return C{1} / (C{1} + Exp(-x));
}

}  // namespace omni::cuda
