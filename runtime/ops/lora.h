// Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): y = x W^T + s (x A^T) B^T.
//
// A fused weight (q, k and v one above the other) has an adapter of its own for each part, as if
// the parts were linear maps by themselves; parts need not all have one. The experts of a layer
// ([E, out, in], grouped_linear.h) have one each, with a leading dim on A and B.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/ops/tape.h"

namespace omni {

struct LoraAdapter {
  struct Part {
    int64_t row_begin, num_rows;  // of the weight (of each expert's): columns of y
  };
  Weight a;  // [parts * rank, in], of experts [E, parts * rank, in]
  Weight b;  // [sum of the parts' rows, rank], [E, sum of the parts' rows, rank]
  std::vector<Part> parts;
  double scale = 1.0;  // alpha / rank

  int64_t rank() const { return b.value.size(-1); }
};

// y_TO + s (x A^T) B^T, in place: y_TO must be nobody else's yet. Called by Linear, and with the
// experts' offsets_E1 by GroupedLinear.
Var AddLora(ExecContext& ctx, const Var& y_TO, const Var& x_TI, const LoraAdapter& lora,
            const TensorView& offsets_E1 = {});

}  // namespace omni
