// The softmax cross-entropy of rows whose classes are spread over ranks, and the chain rule with a
// scalar loss. A block for each row, bound by memory: one pass for the parts (two if exponentials
// are kept), one for the join.
#include "runtime/device/args/cross_entropy.h"
#include "runtime/device/cuda/map.h"
#include "runtime/device/cuda/register.h"
#include "runtime/device/cuda/softmax.h"

namespace omni::cuda {
namespace {

constexpr int32_t kMostClasses = 1 << 24;  // that fp32 can count

// As cross_entropy.h has them.
template <typename C>
struct Part {
  C top, sum, target_logit, argmax;
};

template <typename C>
__global__ void __launch_bounds__(kThreads)
    PartsKernel(C* logits, const int32_t* targets, Part<C>* parts, int64_t classes,
                int64_t first_class, bool keeps_exponentials) {
  const int64_t row = blockIdx.x;
  C* const own = logits + row * classes;
  const Online<C> part = BlockSoftmax(own, classes);
  if (threadIdx.x == 0) {
    const int32_t target = targets[row];
    const bool has_target = target >= 0 && target < classes;
    if (classes == 0)
      parts[row] = {C(-INFINITY), C{0}, C{0}, C{0}};
    else
      parts[row] = {part.top, part.sum, has_target ? own[target] : C{0},
                    static_cast<C>(first_class + part.argmax)};
  }
  if (!keeps_exponentials) return;
  __syncthreads();  // the target's logit is read before it becomes an exponential
  for (int64_t i = threadIdx.x; i < classes; i += kThreads) own[i] = Exp(own[i] - part.top);
}
template <typename C>
cudaError_t Parts(const SoftmaxPartsArgs& args, const KernelContext* context) {
  return Launch(PartsKernel<C>, {static_cast<unsigned>(args.logits_RV.sizes[0]), kThreads},
                StreamOf(context), static_cast<C*>(args.logits_RV.data),
                static_cast<const int32_t*>(args.targets_R.data),
                static_cast<Part<C>*>(args.parts_R4.data), args.logits_RV.sizes[1],
                args.first_class, args.keep_exponentials != 0);
}

template <typename C>
struct JoinFields {
  const Part<C>* parts;  // [S, R]
  C* logits;             // null: none
  const int32_t *targets, *places;
  C *loss, *losses;
  int32_t* argmax;
  int64_t num_parts, part, rows, classes;
  C scale;
};

template <typename C>
__global__ void __launch_bounds__(kThreads) JoinKernel(const __grid_constant__ JoinFields<C> f) {
  const int64_t row = blockIdx.x;
  C top = -INFINITY, sum{0}, target_logit{0};
  int32_t argmax = 0;
  for (int64_t s = 0; s < f.num_parts; ++s) {
    const Part<C> part = f.parts[s * f.rows + row];
    target_logit += part.target_logit;
    if (!(part.top > top) && s > 0) continue;
    top = part.top;
    // Anything may lie here after an exchange that failed.
    argmax =
        part.argmax >= 0 && part.argmax <= kMostClasses ? static_cast<int32_t>(part.argmax) : -1;
  }
  for (int64_t s = 0; s < f.num_parts; ++s) {
    const Part<C> part = f.parts[s * f.rows + row];
    if (part.sum != C{0}) sum += part.sum * Exp(part.top - top);
  }
  if (threadIdx.x == 0 && f.places[row] >= 0) {
    f.losses[f.places[row]] = Log(sum) + (top - target_logit);
    f.argmax[f.places[row]] = argmax;
  }
  if (f.logits == nullptr) return;
  C* const grads = f.logits + row * f.classes;
  const C factor = f.scale / sum * Exp(f.parts[f.part * f.rows + row].top - top);
  const int32_t target = f.targets[row];
  for (int64_t i = threadIdx.x; i < f.classes; i += kThreads)
    grads[i] = factor * grads[i] - (i == target ? f.scale : C{0});
}
// One block: the losses reported, in the order of their rows.
template <typename C>
__global__ void __launch_bounds__(kThreads) AddLosses(const __grid_constant__ JoinFields<C> f) {
  double sum = 0;
  for (int64_t r = threadIdx.x; r < f.rows; r += kThreads)
    if (f.places[r] >= 0) sum += static_cast<double>(f.losses[f.places[r]]);
  sum = BlockSum(sum);
  if (threadIdx.x == 0) *f.loss += static_cast<C>(static_cast<double>(f.scale) * sum);
}
template <typename C>
cudaError_t JoinParts(const SoftmaxJoinArgs& args, const KernelContext* context) {
  const bool has_logits = !args.logits_RV.empty() && args.logits_RV.sizes[1] > 0;
  const JoinFields<C> f{.parts = static_cast<const Part<C>*>(args.parts_SR4.data),
                        .logits = has_logits ? static_cast<C*>(args.logits_RV.data) : nullptr,
                        .targets = static_cast<const int32_t*>(args.targets_R.data),
                        .places = static_cast<const int32_t*>(args.places_R.data),
                        .loss = static_cast<C*>(args.loss.data),
                        .losses = static_cast<C*>(args.losses_T.data),
                        .argmax = static_cast<int32_t*>(args.argmax_T.data),
                        .num_parts = args.parts_SR4.sizes[0],
                        .part = args.part,
                        .rows = args.parts_SR4.sizes[1],
                        .classes = has_logits ? args.logits_RV.sizes[1] : 0,
                        .scale = static_cast<C>(args.scale)};
  const cudaError_t error =
      Launch(JoinKernel<C>, {static_cast<unsigned>(f.rows), kThreads}, StreamOf(context), f);
  if (error != cudaSuccess) return error;
  return Launch(AddLosses<C>, {1, kThreads}, StreamOf(context), f);
}

// y (+)= grad_loss x.
template <typename T, int kCount>
struct ChainBody {
  using C = ComputeOf<T>;
  const C* grad_loss;
  Matrix<T> x, y;
  bool add;
  __device__ void operator()(int64_t row, int64_t column) const {
    const C factor = *grad_loss;
    T from[kCount], to[kCount];
    LoadElements(x.row(row) + column, from);
    if (add) LoadElements(y.row(row) + column, to);
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      to[i] = Narrow<T>(add ? Wide(to[i]) + factor * Wide(from[i]) : factor * Wide(from[i]));
    StoreElements(y.row(row) + column, to);
  }
};
template <typename T>
cudaError_t Chain(const CrossEntropyBackwardArgs& args, cudaStream_t stream) {
  return MapRows<ChainBody, T>(HaveWideRows(args.x, args.y), args.x.sizes[0], WidthOf(args.x),
                               stream, static_cast<const ComputeOf<T>*>(args.grad_loss.data),
                               MatrixOf<T>(args.x), MatrixOf<T>(args.y), args.accumulate != 0);
}
// x and y are of type T, or both of the type that sums are in.
template <typename T>
cudaError_t CrossEntropyBackward(const CrossEntropyBackwardArgs& args,
                                 const KernelContext* context) {
  const bool is_sum = args.x.dtype == args.grad_loss.dtype;
  return is_sum ? Chain<ComputeOf<T>>(args, StreamOf(context)) : Chain<T>(args, StreamOf(context));
}

}  // namespace

void RegisterSoftmaxParts(KernelRegistry& registry) {
  registry.Register(MakeEntry<SoftmaxPartsArgs, Parts<double>>(OpId::kSoftmaxParts, DType::kFloat64,
                                                               "f64_softmax_parts_cuda"));
  registry.Register(MakeEntry<SoftmaxPartsArgs, Parts<float>>(OpId::kSoftmaxParts, DType::kFloat32,
                                                              "f32_softmax_parts_cuda"));
  registry.Register(MakeEntry<SoftmaxJoinArgs, JoinParts<double>>(
      OpId::kSoftmaxJoin, DType::kFloat64, "f64_softmax_join_cuda"));
  registry.Register(MakeEntry<SoftmaxJoinArgs, JoinParts<float>>(
      OpId::kSoftmaxJoin, DType::kFloat32, "f32_softmax_join_cuda"));
  registry.Register(MakeEntry<CrossEntropyBackwardArgs, CrossEntropyBackward<double>>(
      OpId::kCrossEntropyBackward, DType::kFloat64, "f64_cross_entropy_bwd_cuda"));
  registry.Register(MakeEntry<CrossEntropyBackwardArgs, CrossEntropyBackward<float>>(
      OpId::kCrossEntropyBackward, DType::kFloat32, "f32_cross_entropy_bwd_cuda"));
  registry.Register(MakeEntry<CrossEntropyBackwardArgs, CrossEntropyBackward<__nv_bfloat16>>(
      OpId::kCrossEntropyBackward, DType::kBFloat16, "bf16_cross_entropy_bwd_cuda"));
}

}  // namespace omni::cuda
