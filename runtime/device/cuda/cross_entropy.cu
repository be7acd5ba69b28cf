// The language-model head with its loss, over chunks of rows: logits of one chunk exist at a time,
// and while they do, their gradients are taken as well. Three products by cuBLASLt and one pass
// over the logits, in which softmax, loss and gradient are one kernel. Rows without a target cost
// as much as others: which they are only the device knows.
#include "runtime/device/args/cross_entropy.h"
#include "runtime/device/cuda/matmul.h"
#include "runtime/device/cuda/register.h"
#include "runtime/device/cuda/softmax.h"

namespace omni::cuda {
namespace {

constexpr int64_t kChunkLogits = int64_t{1} << 27;

int64_t RowsOfChunk(const CrossEntropyForwardArgs& args) {
  const int64_t classes = args.head_VH.sizes[0] > 0 ? args.head_VH.sizes[0] : 1;
  const int64_t fitting = kChunkLogits / classes > 64 ? kChunkLogits / classes : 64;
  return fitting < args.hidden_TH.sizes[0] ? fitting : args.hidden_TH.sizes[0];
}

// A block for each row. Logits become scale (softmax - onehot) in `grads`, which may be the same
// memory; null: not wanted.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    LossKernel(const ComputeOf<T>* logits, T* grads, int64_t classes, const int32_t* targets,
               ComputeOf<T> scale, ComputeOf<T>* losses, int32_t* argmax, int32_t* flags) {
  using C = ComputeOf<T>;
  const int64_t row = blockIdx.x;
  const C* const own = logits + row * classes;
  int32_t target = targets[row];
  if (target >= classes) {
    if (threadIdx.x == 0) Raise(flags, kBadTarget);
    target = -1;
  }
  if (target < 0) {
    if (threadIdx.x == 0) {
      losses[row] = C{0};
      argmax[row] = -1;
    }
    if (grads != nullptr)
      for (int64_t i = threadIdx.x; i < classes; i += kThreads)
        grads[row * classes + i] = Narrow<T>(C{0});
    return;
  }
  const Online<C> softmax = BlockSoftmax(own, classes);
  if (threadIdx.x == 0) {
    losses[row] = Log(softmax.sum) + (softmax.top - own[target]);
    argmax[row] = softmax.argmax;
  }
  if (grads == nullptr) return;
  __syncthreads();  // the target's logit is read before it becomes a gradient
  const C factor = scale / softmax.sum;
  for (int64_t i = threadIdx.x; i < classes; i += kThreads)
    grads[row * classes + i] =
        Narrow<T>(factor * Exp(own[i] - softmax.top) - (i == target ? scale : C{0}));
}

// One block: the losses in the order of their rows.
template <typename C>
__global__ void __launch_bounds__(kThreads)
    SumLosses(const C* losses, int64_t rows, C scale, C* loss) {
  double sum = 0;
  for (int64_t r = threadIdx.x; r < rows; r += kThreads) sum += static_cast<double>(losses[r]);
  sum = BlockSum(sum);
  if (threadIdx.x == 0) *loss = static_cast<C>(static_cast<double>(scale) * sum);
}

bool WantsGradients(const CrossEntropyForwardArgs& args) {
  return !args.grad_hidden_TH.empty() || !args.grad_head_VH.empty();
}
template <typename T>
int64_t LogitsBytes(const CrossEntropyForwardArgs& args) {
  const int64_t bytes =
      RowsOfChunk(args) * args.head_VH.sizes[0] * static_cast<int64_t>(sizeof(ComputeOf<T>));
  return PieceBytes(bytes);
}
// The gradients of logits lie where these do, unless they are of a narrower type.
template <typename T>
int64_t ForwardScratch(const CrossEntropyForwardArgs& args) {
  const bool apart = WantsGradients(args) && sizeof(T) < sizeof(ComputeOf<T>);
  return LogitsBytes<T>(args) +
         (apart ? RowsOfChunk(args) * args.head_VH.sizes[0] * static_cast<int64_t>(sizeof(T)) : 0);
}

template <typename T>
cudaError_t Forward(const CrossEntropyForwardArgs& args, const KernelContext* context) {
  using C = ComputeOf<T>;
  const cudaStream_t stream = StreamOf(context);
  const int64_t tokens = args.hidden_TH.sizes[0], width = args.hidden_TH.sizes[1];
  const int64_t classes = args.head_VH.sizes[0], most_rows = RowsOfChunk(args);
  auto* const logits = static_cast<C*>(context->scratch);
  T* grads = nullptr;
  if (WantsGradients(args)) {
    auto* const at = static_cast<std::byte*>(context->scratch);
    grads = reinterpret_cast<T*>(sizeof(T) < sizeof(C) ? at + LogitsBytes<T>(args) : at);
  }
  cudaError_t error = cudaSuccess;
  if (tokens == 0 && !args.grad_head_VH.empty())
    error = cudaMemsetAsync(args.grad_head_VH.data, 0, args.grad_head_VH.num_bytes(), stream);
  for (int64_t first = 0; first < tokens && error == cudaSuccess; first += most_rows) {
    const int64_t rows = most_rows < tokens - first ? most_rows : tokens - first;
    const int64_t stride = args.hidden_TH.strides[0];
    const T* const hidden = static_cast<const T*>(args.hidden_TH.data) + first * stride;
    error = Multiply(context, {.m = rows,
                               .n = classes,
                               .k = width,
                               .dtype = args.hidden_TH.dtype,
                               .c_dtype = args.loss.dtype,
                               .a = hidden,
                               .lda = stride,
                               .b = args.head_VH.data,
                               .ldb = args.head_VH.strides[0],
                               .b_transposed = true,
                               .c = logits,
                               .ldc = classes});
    if (error != cudaSuccess) return error;
    error = Launch(LossKernel<T>, {static_cast<unsigned>(rows), kThreads}, stream,
                   static_cast<const C*>(logits), grads, classes,
                   static_cast<const int32_t*>(args.targets_T.data) + first,
                   static_cast<C>(args.scale), static_cast<C*>(args.losses_T.data) + first,
                   static_cast<int32_t*>(args.argmax_T.data) + first, context->flags);
    if (error == cudaSuccess && !args.grad_hidden_TH.empty())
      error = Multiply(context, {.m = rows,
                                 .n = width,
                                 .k = classes,
                                 .dtype = args.hidden_TH.dtype,
                                 .c_dtype = args.grad_hidden_TH.dtype,
                                 .a = grads,
                                 .lda = classes,
                                 .b = args.head_VH.data,
                                 .ldb = args.head_VH.strides[0],
                                 .c = static_cast<T*>(args.grad_hidden_TH.data) +
                                      first * args.grad_hidden_TH.strides[0],
                                 .ldc = args.grad_hidden_TH.strides[0]});
    if (error == cudaSuccess && !args.grad_head_VH.empty())
      error = Multiply(context, {.m = classes,
                                 .n = width,
                                 .k = rows,
                                 .dtype = args.hidden_TH.dtype,
                                 .c_dtype = args.grad_head_VH.dtype,
                                 .a = grads,
                                 .lda = classes,
                                 .a_transposed = true,
                                 .b = hidden,
                                 .ldb = stride,
                                 .c = args.grad_head_VH.data,
                                 .ldc = args.grad_head_VH.strides[0],
                                 .beta = first > 0 ? 1.0 : 0.0});
  }
  if (error != cudaSuccess) return error;
  return Launch(SumLosses<C>, {1, kThreads}, stream, static_cast<const C*>(args.losses_T.data),
                tokens, static_cast<C>(args.scale), static_cast<C*>(args.loss.data));
}

template <typename T>
void Register(KernelRegistry& registry, DType dtype, const char* forward) {
  registry.Register(MakeEntry<CrossEntropyForwardArgs, Forward<T>, ForwardScratch<T>>(
      OpId::kCrossEntropyForward, dtype, forward));
}

}  // namespace

void RegisterCrossEntropy(KernelRegistry& registry) {
  Register<double>(registry, DType::kFloat64, "f64_cross_entropy_fwd_cuda_lt");
  Register<float>(registry, DType::kFloat32, "f32_cross_entropy_fwd_cuda_lt");
  Register<__nv_bfloat16>(registry, DType::kBFloat16, "bf16_cross_entropy_fwd_cuda_lt");
}

}  // namespace omni::cuda
