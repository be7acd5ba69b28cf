// Moving rows: all bound by memory. Sums over repeated rows are cut by columns, so that every
// element is added up in the order of the rows, whatever the number of threads.
#include "runtime/device/args/rows.h"

#include <cstring>

#include "runtime/device/cpu/register.h"
#include "runtime/device/cpu/tasks.h"

namespace omni::cpu {
namespace {

bool AllBelow(const TensorView& rows, int64_t limit) {
  const int32_t* row = rows.ptr<int32_t>();
  for (int64_t i = 0; i < rows.num_elements(); ++i)
    if (row[i] < 0 || row[i] >= limit) return false;
  return true;
}

template <typename T>
T* RowOf(const TensorView& x, int64_t i) {
  return static_cast<T*>(x.data) + i * x.stride(0);
}

// y[i] = x[rows[i]]
template <typename T>
int32_t Gather(const KernelContext& ctx, const TensorView& x, const TensorView& rows,
               const TensorView& y) {
  if (!AllBelow(rows, x.size(0))) return kBadRowIndex;
  const int32_t* from = rows.ptr<int32_t>();
  const int64_t width = x.size(1);
  ForEachRange(ctx, rows.size(0), RowGrain(width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      std::memcpy(RowOf<T>(y, i), RowOf<T>(x, from[i]), width * sizeof(T));
  });
  return 0;
}

constexpr int64_t kColumns = 128;

// sums[rows[i]] += source[i] for columns [begin, end), i ascending.
template <typename T, typename C>
void AddRows(const TensorView& source, const int32_t* rows, int64_t begin, int64_t end, C* sums,
             int64_t stride) {
  for (int64_t i = 0; i < source.size(0); ++i) {
    const T* from = RowOf<T>(source, i);
    C* to = sums + rows[i] * stride;
    for (int64_t j = begin; j < end; ++j) to[j] += static_cast<C>(from[j]);
  }
}

template <typename T>
struct Rows {
  using C = ComputeOf<T>;

  static int64_t GatherRows(const GatherRowsArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    return Gather<T>(*context, args.x_TH, args.rows_R, args.y_RH);
  }

  static int64_t EmbeddingForward(const EmbeddingForwardArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    return Gather<T>(*context, args.table_VH, args.ids_T, args.y_TH);
  }

  static int64_t EmbeddingBackward(const EmbeddingBackwardArgs& args,
                                   const KernelContext* context) {
    if (context == nullptr) return 0;
    if (!AllBelow(args.ids_T, args.grad_table_VH.size(0))) return kBadRowIndex;
    ForEachRange(*context, args.grad_y_TH.size(1), kColumns, [&](int64_t begin, int64_t end) {
      AddRows<T, C>(args.grad_y_TH, args.ids_T.ptr<int32_t>(), begin, end,
                    args.grad_table_VH.ptr<C>(), args.grad_table_VH.stride(0));
    });
    return 0;
  }

  static int64_t ScatterRows(const ScatterRowsArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    const int64_t num_rows = args.y_TH.size(0), width = args.y_TH.size(1);
    if (!AllBelow(args.rows_R, num_rows)) return kBadRowIndex;
    ForEachRange(*context, num_rows, RowGrain(width), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        std::memcpy(RowOf<T>(args.y_TH, i), RowOf<T>(args.base_TH, i), width * sizeof(T));
    });
    const int32_t* to = args.rows_R.ptr<int32_t>();
    ForEachRange(*context, args.rows_R.size(0), RowGrain(width), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (args.source_RH.num_dims == 0)
          std::memset(static_cast<void*>(RowOf<T>(args.y_TH, to[i])), 0, width * sizeof(T));
        else
          std::memcpy(RowOf<T>(args.y_TH, to[i]), RowOf<T>(args.source_RH, i), width * sizeof(T));
      }
    });
    return 0;
  }

  // bf16 sums are formed in fp32 and rounded once.
  static int64_t ScatterAddRows(const ScatterAddRowsArgs& args, const KernelContext* context) {
    const int64_t num_rows = args.y_TH.size(0), width = args.y_TH.size(1);
    if (context == nullptr)
      return std::is_same_v<T, C> ? 0 : num_rows * width * static_cast<int64_t>(sizeof(C));
    if (!AllBelow(args.rows_R, num_rows)) return kBadRowIndex;
    C* sums;
    int64_t stride;
    if constexpr (std::is_same_v<T, C>) {
      sums = args.y_TH.ptr<C>();
      stride = args.y_TH.stride(0);
    } else {
      sums = static_cast<C*>(context->scratch);
      stride = width;
    }
    ForEachRange(*context, width, kColumns, [&](int64_t begin, int64_t end) {
      for (int64_t r = 0; r < num_rows; ++r) {
        if (args.zero_first)
          for (int64_t j = begin; j < end; ++j) sums[r * stride + j] = 0;
        else if (!std::is_same_v<T, C>)
          for (int64_t j = begin; j < end; ++j)
            sums[r * stride + j] = static_cast<C>(RowOf<T>(args.y_TH, r)[j]);
      }
      AddRows<T, C>(args.source_RH, args.rows_R.ptr<int32_t>(), begin, end, sums, stride);
      if constexpr (!std::is_same_v<T, C>)
        for (int64_t r = 0; r < num_rows; ++r)
          for (int64_t j = begin; j < end; ++j) RowOf<T>(args.y_TH, r)[j] = T(sums[r * stride + j]);
    });
    return 0;
  }

  static int64_t InterpolateForward(const InterpolateRowsForwardArgs& args,
                                    const KernelContext* context) {
    if (context == nullptr) return 0;
    if (!AllBelow(args.taps_PK, args.table_VH.size(0))) return kBadRowIndex;
    const int64_t num_taps = args.taps_PK.size(1), width = args.y_PH.size(1);
    const int32_t* taps = args.taps_PK.ptr<int32_t>();
    const C* weights = args.weights_PK.ptr<C>();
    ForEachRange(*context, args.y_PH.size(0), RowGrain(width * num_taps),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t p = begin; p < end; ++p) {
                     for (int64_t first = 0; first < width; first += kColumns) {
                       const int64_t count = AtMost(kColumns, width - first);
                       C sums[kColumns] = {};
                       for (int64_t k = p * num_taps; k < (p + 1) * num_taps; ++k) {
                         const T* from = RowOf<T>(args.table_VH, taps[k]) + first;
                         for (int64_t j = 0; j < count; ++j)
                           sums[j] += weights[k] * static_cast<C>(from[j]);
                       }
                       T* to = RowOf<T>(args.y_PH, p) + first;
                       for (int64_t j = 0; j < count; ++j) to[j] = static_cast<T>(sums[j]);
                     }
                   }
                 });
    return 0;
  }

  static int64_t InterpolateBackward(const InterpolateRowsBackwardArgs& args,
                                     const KernelContext* context) {
    if (context == nullptr) return 0;
    if (!AllBelow(args.taps_PK, args.grad_table_VH.size(0))) return kBadRowIndex;
    const int64_t num_taps = args.taps_PK.size(1);
    const int32_t* taps = args.taps_PK.ptr<int32_t>();
    const C* weights = args.weights_PK.ptr<C>();
    ForEachRange(*context, args.grad_y_PH.size(1), kColumns, [&](int64_t begin, int64_t end) {
      for (int64_t p = 0; p < args.grad_y_PH.size(0); ++p) {
        const T* from = RowOf<T>(args.grad_y_PH, p);
        for (int64_t k = p * num_taps; k < (p + 1) * num_taps; ++k) {
          C* to = RowOf<C>(args.grad_table_VH, taps[k]);
          for (int64_t j = begin; j < end; ++j) to[j] += weights[k] * static_cast<C>(from[j]);
        }
      }
    });
    return 0;
  }

  static void Register(KernelRegistry& registry, DType dtype, const char* const (&names)[7]) {
    registry.Register(MakeEntry<GatherRowsArgs, &GatherRows>(OpId::kGatherRows, dtype, names[0]));
    registry.Register(
        MakeEntry<ScatterRowsArgs, &ScatterRows>(OpId::kScatterRows, dtype, names[1]));
    registry.Register(
        MakeEntry<ScatterAddRowsArgs, &ScatterAddRows>(OpId::kScatterAddRows, dtype, names[2]));
    registry.Register(MakeEntry<EmbeddingForwardArgs, &EmbeddingForward>(OpId::kEmbeddingForward,
                                                                         dtype, names[3]));
    registry.Register(MakeEntry<EmbeddingBackwardArgs, &EmbeddingBackward>(OpId::kEmbeddingBackward,
                                                                           dtype, names[4]));
    registry.Register(MakeEntry<InterpolateRowsForwardArgs, &InterpolateForward>(
        OpId::kInterpolateRowsForward, dtype, names[5]));
    registry.Register(MakeEntry<InterpolateRowsBackwardArgs, &InterpolateBackward>(
        OpId::kInterpolateRowsBackward, dtype, names[6]));
  }
};

}  // namespace

void RegisterRowKernels(KernelRegistry& registry) {
  Rows<double>::Register(registry, DType::kFloat64,
                         {"f64_gather_rows_cpu", "f64_scatter_rows_cpu", "f64_scatter_add_rows_cpu",
                          "f64_embedding_fwd_cpu", "f64_embedding_bwd_cpu",
                          "f64_interpolate_rows_fwd_cpu", "f64_interpolate_rows_bwd_cpu"});
  Rows<float>::Register(registry, DType::kFloat32,
                        {"f32_gather_rows_cpu", "f32_scatter_rows_cpu", "f32_scatter_add_rows_cpu",
                         "f32_embedding_fwd_cpu", "f32_embedding_bwd_cpu",
                         "f32_interpolate_rows_fwd_cpu", "f32_interpolate_rows_bwd_cpu"});
  Rows<BFloat16>::Register(
      registry, DType::kBFloat16,
      {"bf16_gather_rows_cpu", "bf16_scatter_rows_cpu", "bf16_scatter_add_rows_cpu",
       "bf16_embedding_fwd_cpu", "bf16_embedding_bwd_cpu", "bf16_interpolate_rows_fwd_cpu",
       "bf16_interpolate_rows_bwd_cpu"});
}

}  // namespace omni::cpu
