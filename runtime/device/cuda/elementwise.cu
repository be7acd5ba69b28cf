// Fill, copy with conversion, add, axpy, scale: each element is read and written once.
#include "runtime/device/args/elementwise.h"
#include "runtime/device/cuda/map.h"
#include "runtime/device/cuda/register.h"

namespace omni::cuda {
namespace {

// What a thread converts from and to. bf16 goes by way of float.
template <typename To, typename From>
__device__ __forceinline__ To Convert(From value) {
  if constexpr (std::is_same_v<To, From>)
    return value;
  else if constexpr (std::is_same_v<From, __nv_bfloat16>)
    return static_cast<To>(__bfloat162float(value));
  else if constexpr (std::is_same_v<To, __nv_bfloat16>)
    return __float2bfloat16_rn(static_cast<float>(value));
  else
    return static_cast<To>(value);
}

template <typename T, int kCount>
struct FillBody {
  Matrix<T> out;
  T value;
  __device__ void operator()(int64_t row, int64_t column) const {
    T values[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = value;
    StoreElements(out.row(row) + column, values);
  }
};
template <typename T>
cudaError_t Fill(const FillArgs& args, const KernelContext* context) {
  if (!CanWalk(args.out)) return cudaErrorInvalidValue;
  const Walk walk(args.out);
  return MapRows<FillBody, T>(walk.IsWide(args.out), walk.rows, walk.width, StreamOf(context),
                              walk.Of<T>(args.out), Convert<T>(args.value));
}

template <typename T, int kCount>
struct CopyBody {
  Matrix<T> in, out;
  __device__ void operator()(int64_t row, int64_t column) const {
    T values[kCount];
    LoadElements(in.row(row) + column, values);
    StoreElements(out.row(row) + column, values);
  }
};
template <typename From, typename To>
struct CastBody {
  Matrix<From> in;
  Matrix<To> out;
  __device__ void operator()(int64_t row, int64_t column) const {
    out.row(row)[column] = Convert<To>(in.row(row)[column]);
  }
};

template <typename From, typename To>
cudaError_t Cast(const CopyCastArgs& args, const Walk& walk, cudaStream_t stream) {
  if constexpr (std::is_same_v<From, To>)
    return MapRows<CopyBody, From>(walk.IsWide(args.in, args.out), walk.rows, walk.width, stream,
                                   walk.Of<From>(args.in), walk.Of<From>(args.out));
  else
    return LaunchMap<1>(CastBody<From, To>{walk.Of<From>(args.in), walk.Of<To>(args.out)},
                        walk.rows, 0, walk.width, stream);
}
template <typename From>
cudaError_t CopyCast(const CopyCastArgs& args, const KernelContext* context) {
  if (!CanWalk(args.in) || !CanWalk(args.out)) return cudaErrorInvalidValue;
  const Walk walk(args.in, args.out);
  const cudaStream_t stream = StreamOf(context);
  switch (args.out.dtype) {
    case DType::kFloat64:
      return Cast<From, double>(args, walk, stream);
    case DType::kFloat32:
      return Cast<From, float>(args, walk, stream);
    case DType::kBFloat16:
      return Cast<From, __nv_bfloat16>(args, walk, stream);
    case DType::kInt32:
      return Cast<From, int32_t>(args, walk, stream);
    case DType::kInt64:
      return Cast<From, int64_t>(args, walk, stream);
    case DType::kUInt8:
      return Cast<From, uint8_t>(args, walk, stream);
  }
  return cudaErrorInvalidValue;
}

template <typename T, int kCount>
struct AddBody {
  Matrix<T> a, b, out;
  __device__ void operator()(int64_t row, int64_t column) const {
    T x[kCount], y[kCount];
    LoadElements(a.row(row) + column, x);
    LoadElements(b.row(row) + column, y);
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = Narrow<T>(Wide(x[i]) + Wide(y[i]));
    StoreElements(out.row(row) + column, x);
  }
};
template <typename T>
cudaError_t Add(const AddArgs& args, const KernelContext* context) {
  if (!CanWalk(args.a) || !CanWalk(args.b) || !CanWalk(args.out)) return cudaErrorInvalidValue;
  const Walk walk(args.out, args.a, args.b);
  return MapRows<AddBody, T>(walk.IsWide(args.a, args.b, args.out), walk.rows, walk.width,
                             StreamOf(context), walk.Of<T>(args.a), walk.Of<T>(args.b),
                             walk.Of<T>(args.out));
}

// x and y of one type.
template <typename T, int kCount>
struct AxpyBody {
  Matrix<T> x, y;
  ComputeOf<T> alpha;
  __device__ void operator()(int64_t row, int64_t column) const {
    T from[kCount], to[kCount];
    LoadElements(x.row(row) + column, from);
    LoadElements(y.row(row) + column, to);
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = Narrow<T>(Wide(to[i]) + alpha * Wide(from[i]));
    StoreElements(y.row(row) + column, to);
  }
};
// x of a lower precision.
template <typename From, typename To>
struct MixedAxpyBody {
  Matrix<From> x;
  Matrix<To> y;
  ComputeOf<To> alpha;
  __device__ void operator()(int64_t row, int64_t column) const {
    To& to = y.row(row)[column];
    to = Narrow<To>(Wide(to) + alpha * Convert<ComputeOf<To>>(x.row(row)[column]));
  }
};
template <typename T>
cudaError_t Axpy(const AxpyArgs& args, const KernelContext* context) {
  if (!CanWalk(args.x) || !CanWalk(args.y)) return cudaErrorInvalidValue;
  const Walk walk(args.y, args.x);
  const cudaStream_t stream = StreamOf(context);
  const auto alpha = static_cast<ComputeOf<T>>(args.alpha);
  if (args.x.dtype == args.y.dtype)
    return MapRows<AxpyBody, T>(walk.IsWide(args.x, args.y), walk.rows, walk.width, stream,
                                walk.Of<T>(args.x), walk.Of<T>(args.y), alpha);
  const auto mixed = [&](auto from) {
    using From = decltype(from);
    return LaunchMap<1>(MixedAxpyBody<From, T>{walk.Of<From>(args.x), walk.Of<T>(args.y), alpha},
                        walk.rows, 0, walk.width, stream);
  };
  if (args.x.dtype == DType::kBFloat16) return mixed(__nv_bfloat16());
  if (args.x.dtype == DType::kFloat32) return mixed(float());
  return cudaErrorInvalidValue;
}

template <typename T, int kCount>
struct ScaleBody {
  Matrix<T> x;
  ComputeOf<T> alpha;
  __device__ void operator()(int64_t row, int64_t column) const {
    T values[kCount];
    LoadElements(x.row(row) + column, values);
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = Narrow<T>(alpha * Wide(values[i]));
    StoreElements(x.row(row) + column, values);
  }
};
template <typename T>
cudaError_t Scale(const ScaleArgs& args, const KernelContext* context) {
  if (!CanWalk(args.x)) return cudaErrorInvalidValue;
  const Walk walk(args.x);
  return MapRows<ScaleBody, T>(walk.IsWide(args.x), walk.rows, walk.width, StreamOf(context),
                               walk.Of<T>(args.x), static_cast<ComputeOf<T>>(args.alpha));
}

}  // namespace

void RegisterElementwise(KernelRegistry& registry) {
#define OMNI_ENTRIES(T, dtype, name)                                                      \
  registry.Register(MakeEntry<FillArgs, Fill<T>>(OpId::kFill, dtype, name "_fill_cuda")); \
  registry.Register(MakeEntry<CopyCastArgs, CopyCast<T>>(OpId::kCopyCast, dtype, name "_copy_cuda"))
  OMNI_ENTRIES(double, DType::kFloat64, "f64");
  OMNI_ENTRIES(float, DType::kFloat32, "f32");
  OMNI_ENTRIES(__nv_bfloat16, DType::kBFloat16, "bf16");
  OMNI_ENTRIES(int32_t, DType::kInt32, "i32");
  OMNI_ENTRIES(int64_t, DType::kInt64, "i64");
  OMNI_ENTRIES(uint8_t, DType::kUInt8, "u8");
#undef OMNI_ENTRIES
#define OMNI_ENTRIES(T, dtype, name)                                                  \
  registry.Register(MakeEntry<AddArgs, Add<T>>(OpId::kAdd, dtype, name "_add_cuda")); \
  registry.Register(MakeEntry<ScaleArgs, Scale<T>>(OpId::kScale, dtype, name "_scale_cuda"))
  OMNI_ENTRIES(double, DType::kFloat64, "f64");
  OMNI_ENTRIES(float, DType::kFloat32, "f32");
  OMNI_ENTRIES(__nv_bfloat16, DType::kBFloat16, "bf16");
#undef OMNI_ENTRIES
  // y is a sum: of fp32, or fp64.
  registry.Register(
      MakeEntry<AxpyArgs, Axpy<double>>(OpId::kAxpy, DType::kFloat64, "f64_axpy_cuda"));
  registry.Register(
      MakeEntry<AxpyArgs, Axpy<float>>(OpId::kAxpy, DType::kFloat32, "f32_axpy_cuda"));
}

}  // namespace omni::cuda
