// Rows to heads and back (Jacobs et al. 2023, arXiv 2309.14509): outside attention a rank has some
// rows of all heads, inside it all rows of some heads.
//
//   q [L, N, D] -- RowsToHeads --> [T, N / size, D] -- attention --> the same -- HeadsToRows -->
//   [L, N, D],  L = row_counts[rank], T = sum of row_counts
//
// One all-to-all each, and the transposed one backward: per rank L (N - N / size) D elements sent.
// To be called by all ranks of the group in the same order, also by those with no rows. A group of
// one gives back its input and records nothing.
#pragma once

#include "absl/types/span.h"
#include "parallel/group.h"
#include "runtime/ops/tape.h"

namespace omni::parallel {

// x [L, N, D] -> [T, n, D], rows in rank order. The size of the group divides N, and rank r gets
// heads [r n, (r + 1) n), n = N / size. Or N divides the size (keys and values of grouped queries):
// then n = 1 and rank r gets a copy of head floor(r N / size); backward sums the copies' gradients,
// in rank order (bf16 in fp32, rounded once).
Var RowsToHeads(ExecContext& ctx, const Var& x_LND, const Group& group,
                absl::Span<const int64_t> row_counts);

// The inverse: x [T, n, D] -> [L, n size, D].
Var HeadsToRows(ExecContext& ctx, const Var& x_TND, const Group& group,
                absl::Span<const int64_t> row_counts);

}  // namespace omni::parallel
