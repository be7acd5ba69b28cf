// Arguments of kEmbedding*, kInterpolateRows*, kGatherRows, kScatterRows and kScatterAddRows
// (runtime/ops/embedding.h, runtime/ops/rows.h). Row numbers are int32 on the device; one out of
// range is the kernel error kBadRowIndex.
#pragma once

#include "runtime/tensor/view.h"

namespace omni {

inline constexpr int32_t kBadRowIndex = 1;

struct GatherRowsArgs {
  TensorView x_TH, rows_R;
  TensorView y_RH;  // y[i] = x[rows[i]]
};

struct ScatterRowsArgs {
  TensorView base_TH;
  TensorView source_RH;  // empty: zeros
  TensorView rows_R;     // distinct
  TensorView y_TH;       // base, but y[rows[i]] = source[i]; must not overlap base
};

// y[rows[i]] += source[i], i ascending.
struct ScatterAddRowsArgs {
  TensorView source_RH, rows_R;
  TensorView y_TH;
  int32_t zero_first = 0;  // y = 0 before
};

struct EmbeddingForwardArgs {
  TensorView ids_T, table_VH;
  TensorView y_TH;
};

struct EmbeddingBackwardArgs {
  TensorView ids_T, grad_y_TH;
  TensorView grad_table_VH;  // fp32 (fp64 in fp64), += in token order
};

// y[p] = sum over k of weights[p, k] * table[taps[p, k]], k ascending.
struct InterpolateRowsForwardArgs {
  TensorView table_VH;
  TensorView taps_PK, weights_PK;  // dense; int32, fp32 (fp64 in fp64)
  TensorView y_PH;
};

struct InterpolateRowsBackwardArgs {
  TensorView taps_PK, weights_PK, grad_y_PH;
  TensorView grad_table_VH;  // fp32 (fp64 in fp64), += in the order of p, then k
};

}  // namespace omni
