// What towers do at their ends: pixels normalised, and rows of time averaged. One pass, bound by
// memory.
#include "runtime/device/args/conv.h"
#include "runtime/device/cuda/map.h"
#include "runtime/device/cuda/register.h"
#include "runtime/device/cuda/segments.h"

namespace omni::cuda {
namespace {

struct Channels {
  float mean[kMaxPatchChannels], std[kMaxPatchChannels];
  uint32_t width;  // elements of one
};
template <typename T, int kCount>
struct NormalizeBody {
  using C = ComputeOf<T>;
  Matrix<uint8_t> patches;
  Matrix<T> y;
  Channels channels;
  __device__ void operator()(int64_t row, int64_t column) const {
    const uint8_t* const from = patches.row(row) + column;
    T values[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const uint32_t c = static_cast<uint32_t>(column + i) / channels.width;
      values[i] = Narrow<T>((static_cast<C>(from[i]) / C{255} - static_cast<C>(channels.mean[c])) /
                            static_cast<C>(channels.std[c]));
    }
    StoreElements(y.row(row) + column, values);
  }
};
template <typename T>
cudaError_t Normalize(const PatchNormalizeArgs& args, const KernelContext* context) {
  Channels channels;
  for (int c = 0; c < kMaxPatchChannels; ++c) {
    channels.mean[c] = args.mean[c];
    channels.std[c] = args.std[c];
  }
  channels.width = static_cast<uint32_t>(WidthOf(args.y_PI) / args.num_channels);
  return MapRows<NormalizeBody, T>(HaveWideRows(args.y_PI), args.y_PI.sizes[0], WidthOf(args.y_PI),
                                   StreamOf(context), MatrixOf<uint8_t>(args.patches_PI),
                                   MatrixOf<T>(args.y_PI), channels);
}

template <typename T, int kCount>
struct PoolBody {
  using C = ComputeOf<T>;
  Matrix<T> x, y;
  Segments segments;
  int32_t kernel;
  __device__ void operator()(int64_t row, int64_t column) const {
    const int32_t s = segments.Find(segments.out, row);
    const int64_t first = segments.in[s] + (row - segments.out[s]) * kernel;
    C sums[kCount] = {};
    T values[kCount];
    for (int32_t j = 0; j < kernel; ++j) {
      LoadElements(x.row(first + j) + column, values);
#pragma unroll
      for (int i = 0; i < kCount; ++i) sums[i] += Wide(values[i]);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = Narrow<T>(sums[i] / static_cast<C>(kernel));
    StoreElements(y.row(row) + column, values);
  }
};
template <typename T>
cudaError_t PoolForward(const AvgPool1dForwardArgs& args, const KernelContext* context) {
  return MapRows<PoolBody, T>(HaveWideRows(args.x_FH, args.y_FH), args.y_FH.sizes[0],
                              WidthOf(args.y_FH), StreamOf(context), MatrixOf<T>(args.x_FH),
                              MatrixOf<T>(args.y_FH), SegmentsOf(args.cu_seqlens, args.cu_outlens),
                              args.kernel);
}

template <typename T, int kCount>
struct PoolBackwardBody {
  using C = ComputeOf<T>;
  Matrix<T> grad_y, grad_x;
  Segments segments;
  int32_t kernel;
  __device__ void operator()(int64_t row, int64_t column) const {
    const int32_t s = segments.Find(segments.in, row);
    const int64_t out = segments.out[s] +
                        static_cast<uint32_t>(row - segments.in[s]) / static_cast<uint32_t>(kernel);
    T values[kCount];
    if (out < segments.out[s + 1]) {
      LoadElements(grad_y.row(out) + column, values);
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        values[i] = Narrow<T>(Wide(values[i]) / static_cast<C>(kernel));
    } else {  // in the remainder, which no output has
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] = Narrow<T>(0);
    }
    StoreElements(grad_x.row(row) + column, values);
  }
};
template <typename T>
cudaError_t PoolBackward(const AvgPool1dBackwardArgs& args, const KernelContext* context) {
  return MapRows<PoolBackwardBody, T>(
      HaveWideRows(args.grad_y_FH, args.grad_x_FH), args.grad_x_FH.sizes[0],
      WidthOf(args.grad_x_FH), StreamOf(context), MatrixOf<T>(args.grad_y_FH),
      MatrixOf<T>(args.grad_x_FH), SegmentsOf(args.cu_seqlens, args.cu_outlens), args.kernel);
}

template <typename T>
void RegisterAs(KernelRegistry& registry, DType dtype, const char* const (&names)[3]) {
  registry.Register(
      MakeEntry<PatchNormalizeArgs, Normalize<T>>(OpId::kPatchNormalize, dtype, names[0]));
  registry.Register(
      MakeEntry<AvgPool1dForwardArgs, PoolForward<T>>(OpId::kAvgPool1dForward, dtype, names[1]));
  registry.Register(
      MakeEntry<AvgPool1dBackwardArgs, PoolBackward<T>>(OpId::kAvgPool1dBackward, dtype, names[2]));
}

}  // namespace

void RegisterPooling(KernelRegistry& registry) {
  RegisterAs<double>(
      registry, DType::kFloat64,
      {"f64_patch_normalize_cuda", "f64_avg_pool_fwd_cuda", "f64_avg_pool_bwd_cuda"});
  RegisterAs<float>(registry, DType::kFloat32,
                    {"f32_patch_normalize_cuda", "f32_avg_pool_fwd_cuda", "f32_avg_pool_bwd_cuda"});
  RegisterAs<__nv_bfloat16>(
      registry, DType::kBFloat16,
      {"bf16_patch_normalize_cuda", "bf16_avg_pool_fwd_cuda", "bf16_avg_pool_bwd_cuda"});
}

}  // namespace omni::cuda
