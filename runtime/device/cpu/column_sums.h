// Sums over the rows of a matrix, in an order fixed by its shape.
#pragma once

#include "runtime/device/cpu/widen.h"

namespace omni::cpu {

// sums[j] += sum_i x(i, j): within blocks of 64 rows first, then block by block.
template <typename C>
void AddColumnSums(const KernelContext& context, const Matrix<const C>& x, C* sums) {
  constexpr int64_t kColumns = 128, kRows = 64;
  ForEachRange(context, x.columns, kColumns, [&](int64_t begin, int64_t end) {
    C total[kColumns] = {};
    const int64_t count = end - begin;
    for (int64_t first = 0; first < x.rows; first += kRows) {
      C block[kColumns] = {};
      for (int64_t i = first; i < AtMost(x.rows, first + kRows); ++i) {
        const C* row = x.data + i * x.stride + begin;
        if (count == kColumns)
          for (int64_t j = 0; j < kColumns; ++j) block[j] += row[j];
        else
          for (int64_t j = 0; j < count; ++j) block[j] += row[j];
      }
      for (int64_t j = 0; j < count; ++j) total[j] += block[j];
    }
    for (int64_t j = 0; j < count; ++j) sums[begin + j] += total[j];
  });
}

}  // namespace omni::cpu
