// Adding up what the ranks sent, in rank order.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "runtime/comm/communicator.h"
#include "runtime/tensor/dtype.h"

namespace omni::comm {

// out[i] = sources[0][i] op sources[1][i] op ..., in that order. bf16 is reduced in fp32 and
// rounded once. `out` may be one of the sources. fp64, fp32, bf16, int32, int64.
void Reduce(DType dtype, ReduceOp op, absl::Span<const void* const> sources, void* out,
            int64_t num_elements);

bool CanReduce(DType dtype);

}  // namespace omni::comm
