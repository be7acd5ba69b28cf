// Rotary positions: each pair (x[i], x[i + D/2]) by the table's angle, forward or back. In place or
// not: each thread reads its pairs before it writes them. 4 bytes an element in bf16; bound by
// memory.
#include "runtime/device/args/rope.h"
#include "runtime/device/cuda/map.h"
#include "runtime/device/cuda/register.h"

namespace omni::cuda {
namespace {

// Rows are (token, head), columns those of the first half.
template <typename T, int kCount>
struct RopeBody {
  using C = ComputeOf<T>;
  Matrix<T> x, y;
  const C *cos, *sin;
  int64_t cos_stride, sin_stride;
  uint32_t heads;
  int64_t half;
  bool backward;
  __device__ void operator()(int64_t row, int64_t column) const {
    const int64_t token = static_cast<uint32_t>(row) / heads;
    T low[kCount], high[kCount];
    LoadElements(x.row(row) + column, low);
    LoadElements(x.row(row) + half + column, high);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const C c = cos[token * cos_stride + column + i];
      const C s =
          backward ? -sin[token * sin_stride + column + i] : sin[token * sin_stride + column + i];
      const C a = Wide(low[i]), b = Wide(high[i]);
      low[i] = Narrow<T>(a * c - b * s);
      high[i] = Narrow<T>(b * c + a * s);
    }
    StoreElements(y.row(row) + column, low);
    StoreElements(y.row(row) + half + column, high);
  }
};

template <typename T, bool kBackward>
cudaError_t Rope(const RopeArgs& args, const KernelContext* context) {
  using C = ComputeOf<T>;
  const int64_t half = WidthOf(args.x_TND) / 2;
  const bool wide = HaveWideRows(args.x_TND, args.y_TND) && half % Vector<T>::kSize == 0;
  return MapRows<RopeBody, T>(
      wide, NumRowsOf(args.x_TND), half, StreamOf(context), MatrixOf<T>(args.x_TND),
      MatrixOf<T>(args.y_TND), static_cast<const C*>(args.cos_TR.data),
      static_cast<const C*>(args.sin_TR.data), args.cos_TR.strides[0], args.sin_TR.strides[0],
      static_cast<uint32_t>(args.x_TND.sizes[1]), half, kBackward);
}

template <typename T>
void RegisterAs(KernelRegistry& registry, DType dtype, const char* forward, const char* backward) {
  registry.Register(MakeEntry<RopeArgs, Rope<T, false>>(OpId::kRopeForward, dtype, forward));
  registry.Register(MakeEntry<RopeArgs, Rope<T, true>>(OpId::kRopeBackward, dtype, backward));
}

}  // namespace

void RegisterRope(KernelRegistry& registry) {
  RegisterAs<double>(registry, DType::kFloat64, "f64_rope_fwd_cuda", "f64_rope_bwd_cuda");
  RegisterAs<float>(registry, DType::kFloat32, "f32_rope_fwd_cuda", "f32_rope_bwd_cuda");
  RegisterAs<__nv_bfloat16>(registry, DType::kBFloat16, "bf16_rope_fwd_cuda", "bf16_rope_bwd_cuda");
}

}  // namespace omni::cuda
