// See softmax_row.h. Three sweeps over a row that is in cache: maximum, exponentials, scaling.
// Included once per SIMD target.
#pragma once

#include "runtime/device/cpu/row_vectors.h"
#include "runtime/device/cpu/softmax_row.h"

namespace omni::cpu::OMNI_SIMD {

template <typename C>
void SoftmaxExponentials(SoftmaxRow<C>* row) {
  using Vec = typename Simd<C>::Vec;
  constexpr int kWidth = Simd<C>::kWidth;
  C* logits = row->logits;
  const int64_t n = row->num_classes;

  C top = logits[0];
  int64_t i = 0;
  if (n >= kWidth) {
    Vec most = Load<C>(logits);
    for (i = kWidth; i + kWidth <= n; i += kWidth) most = Max(most, Load<C>(logits + i));
    top = most[0];
    for (int lane = 1; lane < kWidth; ++lane)
      if (most[lane] > top) top = most[lane];
  }
  for (; i < n; ++i)
    if (logits[i] > top) top = logits[i];
  int64_t best = 0;
  while (best < n - 1 && !(logits[best] == top)) ++best;
  row->top = top;
  row->argmax = static_cast<int32_t>(best);

  const bool keeps = row->keeps_exponentials;
  const Vec shift = Splat(top);
  Vec sums = {};
  Sweep<C>(n, [&](int64_t j, int64_t count) {
    const Vec e = Keep<C>(Exp(LoadSome<C>(logits + j, count) - shift), count);
    sums += e;
    if (keeps) StoreSome(logits + j, e, count);
  });
  row->sum = Sum(sums);
}

template <typename C>
void SoftmaxScale(C* values, int64_t count, C factor) {
  const auto scale = Splat(factor);
  Sweep<C>(count, [&](int64_t j, int64_t some) {
    StoreSome(values + j, LoadSome<C>(values + j, some) * scale, some);
  });
}

}  // namespace omni::cpu::OMNI_SIMD
