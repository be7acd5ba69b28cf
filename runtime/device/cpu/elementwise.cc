// Fill, copy with conversion, add, axpy, scale. Memory-bound: each element is read and written
// once, so plain loops that the compiler vectorises reach the same speed as anything else.
#include "runtime/device/args/elementwise.h"

#include <cstring>

#include "runtime/device/cpu/kernel_helpers.h"
#include "runtime/device/cpu/register.h"

namespace omni::cpu {
namespace {

// A view as rows of contiguous elements: [num_rows, row_elements], rows anywhere.
struct RowsOf {
  explicit RowsOf(const TensorView& v) : view(v) {
    row_elements = v.num_dims == 0 ? 1 : v.size(-1);
    if (v.is_dense()) {
      // As one long row cut into pieces, so that a vector is parallel too.
      dense = true;
      const int64_t n = v.num_elements();
      row_elements = std::min<int64_t>(n, 4096);
      num_rows = n == 0 ? 0 : (n + row_elements - 1) / row_elements;
      total = n;
      return;
    }
    total = v.num_elements();
    num_rows = row_elements == 0 ? 0 : total / row_elements;
  }
  int64_t Count(int64_t row) const {
    return dense ? std::min(row_elements, total - row * row_elements) : row_elements;
  }
  TensorView view;
  int64_t num_rows = 0, row_elements = 0, total = 0;
  bool dense = false;
};

// Two or three views of one shape walked together; dense cutting only if all are dense.
RowsOf Walk(const TensorView& like, bool all_dense) {
  RowsOf rows(like);
  if (rows.dense && !all_dense) {
    rows.dense = false;
    rows.row_elements = like.num_dims == 0 ? 1 : like.size(-1);
    rows.num_rows = rows.row_elements == 0 ? 0 : rows.total / rows.row_elements;
  }
  return rows;
}
int64_t OffsetIn(const RowsOf& walk, const TensorView& view, int64_t row) {
  if (walk.dense) return row * walk.row_elements;
  int64_t offset = 0;
  for (int d = view.num_dims - 2; d >= 0; --d) {
    offset += (row % view.sizes[d]) * view.strides[d];
    row /= view.sizes[d];
  }
  return offset;
}

template <typename T>
T FromDouble(double value) {
  if constexpr (std::is_same_v<T, BFloat16>)
    return BFloat16(static_cast<float>(value));
  else
    return static_cast<T>(value);
}

template <typename From, typename To>
To Convert(From value) {
  if constexpr (std::is_same_v<From, To>)
    return value;
  else if constexpr (std::is_same_v<From, BFloat16>)
    return static_cast<To>(static_cast<float>(value));
  else if constexpr (std::is_same_v<To, BFloat16>)
    return BFloat16(static_cast<float>(value));
  else
    return static_cast<To>(value);
}

template <typename T>
int32_t Fill(const void* raw, const KernelContext* context) {
  const auto& args = *static_cast<const FillArgs*>(raw);
  const RowsOf walk = Walk(args.out, args.out.is_dense());
  const T value = FromDouble<T>(args.value);
  ParallelForRows(*context, walk.num_rows, walk.row_elements, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      T* out = args.out.ptr<T>() + OffsetIn(walk, args.out, row);
      std::fill(out, out + walk.Count(row), value);
    }
  });
  return 0;
}

template <typename From, typename To>
void CopyRows(const CopyCastArgs& args, const KernelContext& context) {
  const RowsOf walk = Walk(args.in, args.in.is_dense() && args.out.is_dense());
  ParallelForRows(context, walk.num_rows, walk.row_elements, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const From* in = static_cast<const From*>(args.in.data) + OffsetIn(walk, args.in, row);
      To* out = static_cast<To*>(args.out.data) + OffsetIn(walk, args.out, row);
      const int64_t count = walk.Count(row);
      for (int64_t i = 0; i < count; ++i) out[i] = Convert<From, To>(in[i]);
    }
  });
}

template <typename From>
int32_t CopyCast(const void* raw, const KernelContext* context) {
  const auto& args = *static_cast<const CopyCastArgs*>(raw);
  OMNI_CHECK(args.in.shape() == args.out.shape());
  if (args.in.dtype == args.out.dtype) {
    CopyRows<From, From>(args, *context);
    return 0;
  }
  switch (args.out.dtype) {
    case DType::kFloat64:
      CopyRows<From, double>(args, *context);
      return 0;
    case DType::kFloat32:
      CopyRows<From, float>(args, *context);
      return 0;
    case DType::kBFloat16:
      CopyRows<From, BFloat16>(args, *context);
      return 0;
    case DType::kInt32:
      CopyRows<From, int32_t>(args, *context);
      return 0;
    case DType::kInt64:
      CopyRows<From, int64_t>(args, *context);
      return 0;
    case DType::kUInt8:
      CopyRows<From, uint8_t>(args, *context);
      return 0;
  }
  return 1;
}

template <typename T>
int32_t Add(const void* raw, const KernelContext* context) {
  const auto& args = *static_cast<const AddArgs*>(raw);
  OMNI_CHECK(args.a.shape() == args.b.shape() && args.a.shape() == args.out.shape());
  const RowsOf walk = Walk(args.out, args.a.is_dense() && args.b.is_dense() && args.out.is_dense());
  ParallelForRows(*context, walk.num_rows, walk.row_elements, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* a = args.a.ptr<T>() + OffsetIn(walk, args.a, row);
      const T* b = args.b.ptr<T>() + OffsetIn(walk, args.b, row);
      T* out = args.out.ptr<T>() + OffsetIn(walk, args.out, row);
      const int64_t count = walk.Count(row);
      for (int64_t i = 0; i < count; ++i) {
        if constexpr (std::is_same_v<T, BFloat16>) {
          out[i] = BFloat16(static_cast<float>(a[i]) + static_cast<float>(b[i]));
        } else {
          out[i] = a[i] + b[i];
        }
      }
    }
  });
  return 0;
}

template <typename From, typename To>
void AxpyRows(const AxpyArgs& args, const KernelContext& context) {
  const RowsOf walk = Walk(args.y, args.x.is_dense() && args.y.is_dense());
  const To alpha = static_cast<To>(args.alpha);
  ParallelForRows(context, walk.num_rows, walk.row_elements, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const From* x = args.x.ptr<From>() + OffsetIn(walk, args.x, row);
      To* y = args.y.ptr<To>() + OffsetIn(walk, args.y, row);
      const int64_t count = walk.Count(row);
      for (int64_t i = 0; i < count; ++i) y[i] += alpha * Convert<From, To>(x[i]);
    }
  });
}

template <typename To>
int32_t Axpy(const void* raw, const KernelContext* context) {
  const auto& args = *static_cast<const AxpyArgs*>(raw);
  OMNI_CHECK(args.x.shape() == args.y.shape());
  switch (args.x.dtype) {
    case DType::kFloat64:
      AxpyRows<double, To>(args, *context);
      return 0;
    case DType::kFloat32:
      AxpyRows<float, To>(args, *context);
      return 0;
    case DType::kBFloat16:
      AxpyRows<BFloat16, To>(args, *context);
      return 0;
    default:
      return 1;
  }
}

template <typename T>
int32_t Scale(const void* raw, const KernelContext* context) {
  const auto& args = *static_cast<const ScaleArgs*>(raw);
  const RowsOf walk = Walk(args.x, args.x.is_dense());
  ParallelForRows(*context, walk.num_rows, walk.row_elements, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      T* x = args.x.ptr<T>() + OffsetIn(walk, args.x, row);
      const int64_t count = walk.Count(row);
      for (int64_t i = 0; i < count; ++i) {
        if constexpr (std::is_same_v<T, BFloat16>) {
          x[i] = BFloat16(static_cast<float>(x[i]) * static_cast<float>(args.alpha));
        } else {
          x[i] *= static_cast<T>(args.alpha);
        }
      }
    }
  });
  return 0;
}

}  // namespace

namespace bfloat16_internal {

void Widen(const KernelContext& context, const TensorView& from, const TensorView& to) {
  const CopyCastArgs args{from, to};
  CopyRows<BFloat16, float>(args, context);
}

void Narrow(const KernelContext& context, const TensorView& from, const TensorView& to) {
  const CopyCastArgs args{from, to};
  CopyRows<float, BFloat16>(args, context);
}

}  // namespace bfloat16_internal

void RegisterElementwiseKernels(KernelRegistry& registry) {
  const auto add = [&](OpId op, DType dtype, const char* name,
                       int32_t (*run)(const void*, const KernelContext*)) {
    registry.Register({.op = op,
                       .device = DeviceKind::kCpu,
                       .dtype = dtype,
                       .name = name,
                       .priority = 0,
                       .run = run,
                       .supports = nullptr,
                       .scratch_bytes = nullptr});
  };
  add(OpId::kFill, DType::kFloat64, "f64_fill_cpu", Fill<double>);
  add(OpId::kFill, DType::kFloat32, "f32_fill_cpu", Fill<float>);
  add(OpId::kFill, DType::kBFloat16, "bf16_fill_cpu", Fill<BFloat16>);
  add(OpId::kFill, DType::kInt32, "i32_fill_cpu", Fill<int32_t>);
  add(OpId::kFill, DType::kInt64, "i64_fill_cpu", Fill<int64_t>);
  add(OpId::kFill, DType::kUInt8, "u8_fill_cpu", Fill<uint8_t>);
  add(OpId::kCopyCast, DType::kFloat64, "f64_copy_cast_cpu", CopyCast<double>);
  add(OpId::kCopyCast, DType::kFloat32, "f32_copy_cast_cpu", CopyCast<float>);
  add(OpId::kCopyCast, DType::kBFloat16, "bf16_copy_cast_cpu", CopyCast<BFloat16>);
  add(OpId::kCopyCast, DType::kInt32, "i32_copy_cast_cpu", CopyCast<int32_t>);
  add(OpId::kCopyCast, DType::kInt64, "i64_copy_cast_cpu", CopyCast<int64_t>);
  add(OpId::kCopyCast, DType::kUInt8, "u8_copy_cast_cpu", CopyCast<uint8_t>);
  add(OpId::kAdd, DType::kFloat64, "f64_add_cpu", Add<double>);
  add(OpId::kAdd, DType::kFloat32, "f32_add_cpu", Add<float>);
  add(OpId::kAdd, DType::kBFloat16, "bf16_add_cpu", Add<BFloat16>);
  add(OpId::kAxpy, DType::kFloat64, "f64_axpy_cpu", Axpy<double>);
  add(OpId::kAxpy, DType::kFloat32, "f32_axpy_cpu", Axpy<float>);
  add(OpId::kScale, DType::kFloat64, "f64_scale_cpu", Scale<double>);
  add(OpId::kScale, DType::kFloat32, "f32_scale_cpu", Scale<float>);
  add(OpId::kScale, DType::kBFloat16, "bf16_scale_cpu", Scale<BFloat16>);
}

}  // namespace omni::cpu
