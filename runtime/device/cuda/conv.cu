// 1-D convolution over packed segments: the frames under the kernel are laid side by side,
// [F', C k], once for all segments, and the rest is a product by cuBLASLt. The gradient of x is a
// product into that shape, and each element of x gathers its own from there: no atomics.
#include "runtime/device/args/conv.h"
#include "runtime/device/cuda/bias.h"
#include "runtime/device/cuda/matmul.h"
#include "runtime/device/cuda/register.h"
#include "runtime/device/cuda/segments.h"
#include "runtime/device/cuda/sums.h"

namespace omni::cuda {
namespace {

struct Taps {
  Segments segments;
  int32_t kernel, stride, padding;
};

// frames[f][c k + j] = x[f stride + j - padding][c] of the same segment.
template <typename T>
struct Unfold {
  template <typename, int kCount>
  struct Body {
    static_assert(kCount == 1);
    Matrix<const T> x;
    T* frames;
    int64_t width;  // C k
    Taps taps;
    __device__ void operator()(int64_t row, int64_t column) const {
      const int32_t s = taps.segments.Find(taps.segments.out, row);
      const auto at = static_cast<uint32_t>(column), kernel = static_cast<uint32_t>(taps.kernel);
      const int64_t first = taps.segments.in[s];
      const int64_t i =
          first + (row - taps.segments.out[s]) * taps.stride + at % kernel - taps.padding;
      const bool is_there = i >= first && i < taps.segments.in[s + 1];
      frames[row * width + column] = is_there ? x.row(i)[at / kernel] : Narrow<T>(0);
    }
  };
};
// grad_x[i][c] = sum over the frames f and taps j that read it of grad_frames[f][c k + j].
template <typename T>
struct Fold {
  template <typename, int kCount>
  struct Body {
    static_assert(kCount == 1);
    const ComputeOf<T>* grad_frames;
    int64_t width;
    Matrix<T> grad_x;
    Taps taps;
    __device__ void operator()(int64_t row, int64_t column) const {
      const int32_t s = taps.segments.Find(taps.segments.in, row);
      const auto place = static_cast<int32_t>(row - taps.segments.in[s]) + taps.padding;
      const int32_t num_frames = taps.segments.out[s + 1] - taps.segments.out[s];
      ComputeOf<T> sum{0};
      for (int32_t j = place % taps.stride; j < taps.kernel && j <= place; j += taps.stride) {
        const int32_t f = (place - j) / taps.stride;
        if (f < num_frames)
          sum += grad_frames[(taps.segments.out[s] + f) * width + column * taps.kernel + j];
      }
      grad_x.row(row)[column] = Narrow<T>(sum);
    }
  };
};

int64_t WidthOfFrames(const TensorView& weight_OCk) {
  return weight_OCk.sizes[1] * weight_OCk.sizes[2];
}
template <typename Args>
Taps TapsOf(const Args& args) {
  return {SegmentsOf(args.cu_seqlens, args.cu_outlens),
          static_cast<int32_t>(args.weight_OCk.sizes[2]), args.stride, args.padding};
}
template <typename T, typename Args>
cudaError_t LayFrames(const Args& args, int64_t frames, T* to, cudaStream_t stream) {
  const int64_t width = WidthOfFrames(args.weight_OCk);
  return LaunchMap<1>(typename Unfold<T>::template Body<T, 1>{MatrixOf<const T>(args.x_FC), to,
                                                              width, TapsOf(args)},
                      frames, 0, width, stream);
}

template <typename T>
int64_t ForwardScratch(const Conv1dForwardArgs& args) {
  return args.y_FO.sizes[0] * WidthOfFrames(args.weight_OCk) * static_cast<int64_t>(sizeof(T));
}
template <typename T>
cudaError_t Forward(const Conv1dForwardArgs& args, const KernelContext* context) {
  auto* const frames = static_cast<T*>(context->scratch);
  const int64_t width = WidthOfFrames(args.weight_OCk), outputs = args.weight_OCk.sizes[0];
  const bool fuses_bias = !args.bias_O.empty() && sizeof(T) < sizeof(double);
  cudaError_t error = LayFrames<T>(args, args.y_FO.sizes[0], frames, StreamOf(context));
  if (error != cudaSuccess) return error;
  error = Multiply(context, {.m = args.y_FO.sizes[0],
                             .n = outputs,
                             .k = width,
                             .dtype = args.y_FO.dtype,
                             .c_dtype = args.y_FO.dtype,
                             .a = frames,
                             .lda = width,
                             .b = args.weight_OCk.data,
                             .ldb = width,
                             .b_transposed = true,
                             .c = args.y_FO.data,
                             .ldc = args.y_FO.strides[0],
                             .bias = fuses_bias ? args.bias_O.data : nullptr});
  if (error != cudaSuccess || args.bias_O.empty() || fuses_bias) return error;
  return AddBias<T, T>(args.y_FO, args.bias_O, StreamOf(context));
}

// Scratch: frames of x, gradients of frames, sums of the bias.
template <typename T>
struct BackwardPlaces {
  int64_t frames = 0, grad_frames = 0, sums = 0, bytes = 0;
  explicit BackwardPlaces(const Conv1dBackwardArgs& args) {
    const int64_t elements = args.grad_y_FO.sizes[0] * WidthOfFrames(args.weight_OCk);
    const auto take = [&](bool wanted, int64_t size) {
      const int64_t at = bytes;
      if (wanted) bytes += PieceBytes(size);
      return at;
    };
    frames = take(!args.grad_weight_OCk.empty(), elements * static_cast<int64_t>(sizeof(T)));
    grad_frames =
        take(!args.grad_x_FC.empty(), elements * static_cast<int64_t>(sizeof(ComputeOf<T>)));
    sums = take(!args.grad_bias_O.empty(), ColumnSumsScratch<ComputeOf<T>>(args.grad_y_FO));
  }
};
template <typename T>
int64_t BackwardScratch(const Conv1dBackwardArgs& args) {
  return BackwardPlaces<T>(args).bytes;
}
template <typename T>
cudaError_t Backward(const Conv1dBackwardArgs& args, const KernelContext* context) {
  using C = ComputeOf<T>;
  const cudaStream_t stream = StreamOf(context);
  auto* const scratch = static_cast<std::byte*>(context->scratch);
  const BackwardPlaces<T> places(args);
  const int64_t rows = args.grad_y_FO.sizes[0], outputs = args.weight_OCk.sizes[0];
  const int64_t width = WidthOfFrames(args.weight_OCk);
  cudaError_t error = cudaSuccess;
  if (!args.grad_weight_OCk.empty() && rows > 0) {
    auto* const frames = reinterpret_cast<T*>(scratch + places.frames);
    error = LayFrames<T>(args, rows, frames, stream);
    if (error == cudaSuccess)
      error = Multiply(context, {.m = outputs,
                                 .n = width,
                                 .k = rows,
                                 .dtype = args.grad_y_FO.dtype,
                                 .c_dtype = args.grad_weight_OCk.dtype,
                                 .a = args.grad_y_FO.data,
                                 .lda = args.grad_y_FO.strides[0],
                                 .a_transposed = true,
                                 .b = frames,
                                 .ldb = width,
                                 .c = args.grad_weight_OCk.data,
                                 .ldc = width,
                                 .beta = 1.0});
  }
  if (error == cudaSuccess && !args.grad_x_FC.empty()) {
    auto* const grad_frames = reinterpret_cast<C*>(scratch + places.grad_frames);
    error = Multiply(context, {.m = rows,
                               .n = width,
                               .k = outputs,
                               .dtype = args.grad_y_FO.dtype,
                               .c_dtype = DTypeOf<C>::value,
                               .a = args.grad_y_FO.data,
                               .lda = args.grad_y_FO.strides[0],
                               .b = args.weight_OCk.data,
                               .ldb = width,
                               .c = grad_frames,
                               .ldc = width});
    if (error == cudaSuccess)
      error = LaunchMap<1>(
          typename Fold<T>::template Body<T, 1>{grad_frames, width, MatrixOf<T>(args.grad_x_FC),
                                                TapsOf(args)},
          args.grad_x_FC.sizes[0], 0, args.grad_x_FC.sizes[1], stream);
  }
  if (error != cudaSuccess || args.grad_bias_O.empty()) return error;
  return AddColumnSums<T>(args.grad_y_FO, static_cast<C*>(args.grad_bias_O.data),
                          scratch + places.sums, stream);
}

template <typename T>
void Register(KernelRegistry& registry, DType dtype, const char* forward, const char* backward) {
  registry.Register(MakeEntry<Conv1dForwardArgs, Forward<T>, ForwardScratch<T>>(
      OpId::kConv1dForward, dtype, forward));
  registry.Register(MakeEntry<Conv1dBackwardArgs, Backward<T>, BackwardScratch<T>>(
      OpId::kConv1dBackward, dtype, backward));
}

}  // namespace

void RegisterConv(KernelRegistry& registry) {
  Register<double>(registry, DType::kFloat64, "f64_conv1d_fwd_cuda_lt", "f64_conv1d_bwd_cuda_lt");
  Register<float>(registry, DType::kFloat32, "f32_conv1d_fwd_cuda_lt", "f32_conv1d_bwd_cuda_lt");
  Register<__nv_bfloat16>(registry, DType::kBFloat16, "bf16_conv1d_fwd_cuda_lt",
                          "bf16_conv1d_bwd_cuda_lt");
}

}  // namespace omni::cuda
