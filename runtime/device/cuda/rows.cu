// Rows by number: gather, scatter, and sums of rows. A number out of range raises kBadRowIndex, and
// its row is left out. Copies are bound by memory. Sums go column by column, a thread each, over
// the rows in their order: the same bits every time, without atomics.
#include "runtime/device/args/rows.h"
#include "runtime/device/cuda/map.h"
#include "runtime/device/cuda/register.h"

namespace omni::cuda {
namespace {

template <typename T, int kCount>
struct GatherBody {
  Matrix<T> x, y;
  const int32_t* rows;
  int64_t num_source_rows;
  int32_t* flags;
  __device__ void operator()(int64_t row, int64_t column) const {
    const int32_t from = rows[row];
    if (from < 0 || from >= num_source_rows) {
      if (column == 0) Raise(flags, kBadRowIndex);
      return;
    }
    T values[kCount];
    LoadElements(x.row(from) + column, values);
    StoreElements(y.row(row) + column, values);
  }
};
template <typename T>
cudaError_t Gather(const TensorView& x, const TensorView& rows, const TensorView& y,
                   const KernelContext* context) {
  return MapRows<GatherBody, T>(HaveWideRows(x, y), y.sizes[0], WidthOf(y), StreamOf(context),
                                MatrixOf<T>(x), MatrixOf<T>(y),
                                static_cast<const int32_t*>(rows.data), x.sizes[0], context->flags);
}
template <typename T>
cudaError_t GatherRows(const GatherRowsArgs& args, const KernelContext* context) {
  return Gather<T>(args.x_TH, args.rows_R, args.y_RH, context);
}
template <typename T>
cudaError_t EmbeddingForward(const EmbeddingForwardArgs& args, const KernelContext* context) {
  return Gather<T>(args.table_VH, args.ids_T, args.y_TH, context);
}

template <typename T, int kCount>
struct CopyRowsBody {
  Matrix<T> from, to;
  __device__ void operator()(int64_t row, int64_t column) const {
    T values[kCount];
    LoadElements(from.row(row) + column, values);
    StoreElements(to.row(row) + column, values);
  }
};
// Source null: zeros.
template <typename T, int kCount>
struct ScatterBody {
  Matrix<T> source, y;
  const int32_t* rows;
  int64_t num_rows;
  int32_t* flags;
  __device__ void operator()(int64_t row, int64_t column) const {
    const int32_t to = rows[row];
    if (to < 0 || to >= num_rows) {
      if (column == 0) Raise(flags, kBadRowIndex);
      return;
    }
    T values[kCount];
    if (source.data != nullptr) {
      LoadElements(source.row(row) + column, values);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] = Narrow<T>(0);
    }
    StoreElements(y.row(to) + column, values);
  }
};
template <typename T>
cudaError_t ScatterRows(const ScatterRowsArgs& args, const KernelContext* context) {
  const cudaStream_t stream = StreamOf(context);
  const int64_t rows = args.y_TH.sizes[0], width = WidthOf(args.y_TH);
  const cudaError_t error =
      MapRows<CopyRowsBody, T>(HaveWideRows(args.base_TH, args.y_TH), rows, width, stream,
                               MatrixOf<T>(args.base_TH), MatrixOf<T>(args.y_TH));
  if (error != cudaSuccess) return error;
  return MapRows<ScatterBody, T>(HaveWideRows(args.source_RH, args.y_TH), args.rows_R.sizes[0],
                                 width, stream, MatrixOf<T>(args.source_RH), MatrixOf<T>(args.y_TH),
                                 static_cast<const int32_t*>(args.rows_R.data), rows,
                                 context->flags);
}

// sums[rows[i]][column] += source[i][column] for each i in order, of one column.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    AddRows(Matrix<T> source, const int32_t* rows, int64_t count, Matrix<ComputeOf<T>> sums,
            int64_t num_rows, int64_t width, int32_t* flags) {
  const int64_t column = ThreadNumber();
  if (column >= width) return;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t to = rows[i];
    if (to < 0 || to >= num_rows) {
      if (column == 0) Raise(flags, kBadRowIndex);
      continue;
    }
    sums.row(to)[column] += Wide(source.row(i)[column]);
  }
}

template <typename T>
cudaError_t EmbeddingBackward(const EmbeddingBackwardArgs& args, const KernelContext* context) {
  const int64_t width = WidthOf(args.grad_y_TH);
  return Launch(AddRows<T>, ThreadEach(width), StreamOf(context), MatrixOf<T>(args.grad_y_TH),
                static_cast<const int32_t*>(args.ids_T.data), args.ids_T.sizes[0],
                MatrixOf<ComputeOf<T>>(args.grad_table_VH), args.grad_table_VH.sizes[0], width,
                context->flags);
}

// bf16 sums are formed in fp32 and rounded once.
template <typename From, typename To>
struct ConvertBody {
  Matrix<From> from;
  Matrix<To> to;
  bool zero;
  __device__ void operator()(int64_t row, int64_t column) const {
    to.row(row)[column] = Narrow<To>(
        zero ? ComputeOf<To>{0} : static_cast<ComputeOf<To>>(Wide(from.row(row)[column])));
  }
};
template <typename T>
constexpr bool kSumsApart = !std::is_same_v<T, ComputeOf<T>>;

template <typename T>
int64_t ScatterAddScratch(const ScatterAddRowsArgs& args) {
  return kSumsApart<T>
             ? args.y_TH.sizes[0] * WidthOf(args.y_TH) * static_cast<int64_t>(sizeof(ComputeOf<T>))
             : 0;
}
template <typename T>
cudaError_t ScatterAddRows(const ScatterAddRowsArgs& args, const KernelContext* context) {
  using C = ComputeOf<T>;
  const cudaStream_t stream = StreamOf(context);
  const int64_t rows = args.y_TH.sizes[0], width = WidthOf(args.y_TH);
  const Matrix<T> y = MatrixOf<T>(args.y_TH);
  Matrix<C> sums;
  if constexpr (kSumsApart<T>)
    sums = {.data = static_cast<C*>(context->scratch), .stride = width};
  else
    sums = y;
  if (kSumsApart<T> || args.zero_first != 0) {
    const cudaError_t error =
        LaunchMap<1>(ConvertBody<T, C>{y, sums, args.zero_first != 0}, rows, 0, width, stream);
    if (error != cudaSuccess) return error;
  }
  const cudaError_t error =
      Launch(AddRows<T>, ThreadEach(width), stream, MatrixOf<T>(args.source_RH),
             static_cast<const int32_t*>(args.rows_R.data), args.rows_R.sizes[0], sums, rows, width,
             context->flags);
  if (error != cudaSuccess || !kSumsApart<T>) return error;
  return LaunchMap<1>(ConvertBody<C, T>{sums, y, false}, rows, 0, width, stream);
}

// y[p] = sum over k of weights[p, k] table[taps[p, k]], k ascending.
template <typename T, int kCount>
struct InterpolateBody {
  using C = ComputeOf<T>;
  const T* table;
  Matrix<T> y;
  const int32_t* taps;
  const C* weights;
  int64_t table_stride;
  int32_t num_taps, table_rows;
  int32_t* flags;
  __device__ void operator()(int64_t row, int64_t column) const {
    C sums[kCount] = {};
    const int32_t* const tap = taps + row * num_taps;
    const C* const weight = weights + row * num_taps;
    for (int32_t k = 0; k < num_taps; ++k) {
      const int32_t from = tap[k];
      if (from < 0 || from >= table_rows) {
        if (column == 0) Raise(flags, kBadRowIndex);
        continue;
      }
      T values[kCount];
      LoadElements(table + from * table_stride + column, values);
#pragma unroll
      for (int i = 0; i < kCount; ++i) sums[i] += weight[k] * Wide(values[i]);
    }
    T values[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = Narrow<T>(sums[i]);
    StoreElements(y.row(row) + column, values);
  }
};
template <typename T>
cudaError_t InterpolateForward(const InterpolateRowsForwardArgs& args,
                               const KernelContext* context) {
  return MapRows<InterpolateBody, T>(
      HaveWideRows(args.table_VH, args.y_PH), args.y_PH.sizes[0], WidthOf(args.y_PH),
      StreamOf(context), static_cast<const T*>(args.table_VH.data), MatrixOf<T>(args.y_PH),
      static_cast<const int32_t*>(args.taps_PK.data),
      static_cast<const ComputeOf<T>*>(args.weights_PK.data), args.table_VH.strides[0],
      static_cast<int32_t>(args.taps_PK.sizes[1]), static_cast<int32_t>(args.table_VH.sizes[0]),
      context->flags);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    AddInterpolated(Matrix<T> grad_y, const int32_t* taps, const ComputeOf<T>* weights,
                    int32_t num_taps, int64_t rows, Matrix<ComputeOf<T>> table, int64_t table_rows,
                    int64_t width, int32_t* flags) {
  const int64_t column = ThreadNumber();
  if (column >= width) return;
  for (int64_t row = 0; row < rows; ++row, taps += num_taps, weights += num_taps) {
    const ComputeOf<T> grad = Wide(grad_y.row(row)[column]);
    for (int32_t k = 0; k < num_taps; ++k) {
      if (taps[k] < 0 || taps[k] >= table_rows) {
        if (column == 0) Raise(flags, kBadRowIndex);
        continue;
      }
      table.row(taps[k])[column] += weights[k] * grad;
    }
  }
}
template <typename T>
cudaError_t InterpolateBackward(const InterpolateRowsBackwardArgs& args,
                                const KernelContext* context) {
  using C = ComputeOf<T>;
  const int64_t width = WidthOf(args.grad_y_PH);
  return Launch(
      AddInterpolated<T>, ThreadEach(width), StreamOf(context), MatrixOf<T>(args.grad_y_PH),
      static_cast<const int32_t*>(args.taps_PK.data), static_cast<const C*>(args.weights_PK.data),
      static_cast<int32_t>(args.taps_PK.sizes[1]), args.grad_y_PH.sizes[0],
      MatrixOf<C>(args.grad_table_VH), args.grad_table_VH.sizes[0], width, context->flags);
}

template <typename T>
void RegisterAs(KernelRegistry& registry, DType dtype, const char* const (&names)[7]) {
  registry.Register(MakeEntry<GatherRowsArgs, GatherRows<T>>(OpId::kGatherRows, dtype, names[0]));
  registry.Register(MakeEntry<EmbeddingForwardArgs, EmbeddingForward<T>>(OpId::kEmbeddingForward,
                                                                         dtype, names[1]));
  registry.Register(MakeEntry<EmbeddingBackwardArgs, EmbeddingBackward<T>>(OpId::kEmbeddingBackward,
                                                                           dtype, names[2]));
  registry.Register(
      MakeEntry<ScatterRowsArgs, ScatterRows<T>>(OpId::kScatterRows, dtype, names[3]));
  registry.Register(MakeEntry<ScatterAddRowsArgs, ScatterAddRows<T>, ScatterAddScratch<T>>(
      OpId::kScatterAddRows, dtype, names[4]));
  registry.Register(MakeEntry<InterpolateRowsForwardArgs, InterpolateForward<T>>(
      OpId::kInterpolateRowsForward, dtype, names[5]));
  registry.Register(MakeEntry<InterpolateRowsBackwardArgs, InterpolateBackward<T>>(
      OpId::kInterpolateRowsBackward, dtype, names[6]));
}

}  // namespace

void RegisterRows(KernelRegistry& registry) {
  RegisterAs<double>(registry, DType::kFloat64,
                     {"f64_gather_rows_cuda", "f64_embedding_fwd_cuda", "f64_embedding_bwd_cuda",
                      "f64_scatter_rows_cuda", "f64_scatter_add_rows_cuda",
                      "f64_interpolate_rows_fwd_cuda", "f64_interpolate_rows_bwd_cuda"});
  RegisterAs<float>(registry, DType::kFloat32,
                    {"f32_gather_rows_cuda", "f32_embedding_fwd_cuda", "f32_embedding_bwd_cuda",
                     "f32_scatter_rows_cuda", "f32_scatter_add_rows_cuda",
                     "f32_interpolate_rows_fwd_cuda", "f32_interpolate_rows_bwd_cuda"});
  RegisterAs<__nv_bfloat16>(
      registry, DType::kBFloat16,
      {"bf16_gather_rows_cuda", "bf16_embedding_fwd_cuda", "bf16_embedding_bwd_cuda",
       "bf16_scatter_rows_cuda", "bf16_scatter_add_rows_cuda", "bf16_interpolate_rows_fwd_cuda",
       "bf16_interpolate_rows_bwd_cuda"});
}

}  // namespace omni::cuda
