// AdamW, the sum of squares for clipping, and Muon's element-wise halves, over flat ranges of
// master weights. AdamW moves 28 bytes an element in fp32; bound by memory.
#include "runtime/device/args/optimizer.h"
#include "runtime/device/cuda/map.h"
#include "runtime/device/cuda/math.h"
#include "runtime/device/cuda/register.h"
#include "runtime/device/cuda/squares.h"

namespace omni::cuda {
namespace {

bool AreAligned(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers)
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return false;
  return true;
}

template <typename T, int kCount>
struct AdamWBody {
  T *weight, *first, *second;
  const T* grad;
  T scale, beta1, beta2, eps, keep, rate, inverse2;
  __device__ void operator()(int64_t, int64_t i) const {
    T w[kCount], m[kCount], v[kCount], g[kCount];
    LoadElements(weight + i, w);
    LoadElements(first + i, m);
    LoadElements(second + i, v);
    LoadElements(grad + i, g);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      g[j] *= scale;
      m[j] = beta1 * m[j] + (T{1} - beta1) * g[j];
      v[j] = beta2 * v[j] + (T{1} - beta2) * g[j] * g[j];
      w[j] = keep * w[j] - rate * m[j] / (Root(v[j] * inverse2) + eps);
    }
    StoreElements(first + i, m);
    StoreElements(second + i, v);
    StoreElements(weight + i, w);
  }
};
template <typename T>
cudaError_t AdamW(const AdamWArgs& args, const KernelContext* context) {
  auto* const weight = static_cast<T*>(args.weight.data);
  auto* const first = static_cast<T*>(args.first_moment.data);
  auto* const second = static_cast<T*>(args.second_moment.data);
  const auto* const grad = static_cast<const T*>(args.grad.data);
  return MapRows<AdamWBody, T>(
      AreAligned({weight, first, second, grad}), 1, args.weight.num_elements(), StreamOf(context),
      weight, first, second, grad, static_cast<T>(args.grad_scale), static_cast<T>(args.beta1),
      static_cast<T>(args.beta2), static_cast<T>(args.eps),
      static_cast<T>(1 - args.lr * args.weight_decay), static_cast<T>(args.lr / args.correction1),
      static_cast<T>(1 / args.correction2));
}

int64_t SumOfSquaresScratch(const SumOfSquaresArgs& args) {
  return SquaresScratch(args.x.num_elements());
}
template <typename T>
cudaError_t SumOfSquares(const SumOfSquaresArgs& args, const KernelContext* context) {
  return SumSquares(static_cast<const T*>(args.x.data), args.x.num_elements(),
                    static_cast<double*>(args.out.data), static_cast<double*>(context->scratch),
                    StreamOf(context));
}

// --- Muon ----------------------------------------------------------------------------------------

template <typename T, int kCount>
struct MomentumBody {
  const T* grad;
  T *buffer, *direction;
  T scale, momentum;
  __device__ void operator()(int64_t, int64_t i) const {
    T g[kCount], b[kCount];
    LoadElements(grad + i, g);
    LoadElements(buffer + i, b);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      g[j] *= scale;
      b[j] = momentum * b[j] + g[j];
      g[j] = g[j] + momentum * b[j];
    }
    StoreElements(buffer + i, b);
    StoreElements(direction + i, g);
  }
};
template <typename T>
cudaError_t MuonMomentum(const MuonMomentumArgs& args, const KernelContext* context) {
  const auto* const grad = static_cast<const T*>(args.grad.data);
  auto* const buffer = static_cast<T*>(args.buffer.data);
  auto* const direction = static_cast<T*>(args.direction.data);
  return MapRows<MomentumBody, T>(
      AreAligned({grad, buffer, direction}), 1, args.grad.num_elements(), StreamOf(context), grad,
      buffer, direction, static_cast<T>(args.grad_scale), static_cast<T>(args.momentum));
}

template <typename T, int kCount>
struct ApplyBody {
  T* weight;
  const T* direction;
  T keep, rate;
  __device__ void operator()(int64_t, int64_t i) const {
    T w[kCount], d[kCount];
    LoadElements(weight + i, w);
    LoadElements(direction + i, d);
#pragma unroll
    for (int j = 0; j < kCount; ++j) w[j] = keep * w[j] - rate * d[j];
    StoreElements(weight + i, w);
  }
};
template <typename T>
cudaError_t MuonApply(const MuonApplyArgs& args, const KernelContext* context) {
  auto* const weight = static_cast<T*>(args.weight.data);
  const auto* const direction = static_cast<const T*>(args.direction.data);
  return MapRows<ApplyBody, T>(AreAligned({weight, direction}), 1, args.weight.num_elements(),
                               StreamOf(context), weight, direction,
                               static_cast<T>(1 - args.lr * args.weight_decay),
                               static_cast<T>(args.lr * args.scale));
}

template <typename T>
void RegisterAs(KernelRegistry& registry, DType dtype, const char* const (&names)[4]) {
  registry.Register(MakeEntry<AdamWArgs, AdamW<T>>(OpId::kAdamW, dtype, names[0]));
  registry.Register(MakeEntry<SumOfSquaresArgs, SumOfSquares<T>, SumOfSquaresScratch>(
      OpId::kSumOfSquares, dtype, names[1]));
  registry.Register(
      MakeEntry<MuonMomentumArgs, MuonMomentum<T>>(OpId::kMuonMomentum, dtype, names[2]));
  registry.Register(MakeEntry<MuonApplyArgs, MuonApply<T>>(OpId::kMuonApply, dtype, names[3]));
}

}  // namespace

void RegisterOptimizers(KernelRegistry& registry) {
  RegisterAs<double>(registry, DType::kFloat64,
                     {"f64_adamw_cuda", "f64_sum_of_squares_cuda", "f64_muon_momentum_cuda",
                      "f64_muon_apply_cuda"});
  RegisterAs<float>(registry, DType::kFloat32,
                    {"f32_adamw_cuda", "f32_sum_of_squares_cuda", "f32_muon_momentum_cuda",
                     "f32_muon_apply_cuda"});
}

}  // namespace omni::cuda
