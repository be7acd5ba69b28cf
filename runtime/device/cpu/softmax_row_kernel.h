// See softmax_row.h. Three sweeps over a row that is in cache: maximum, exponentials, scaling.
// Included once per SIMD target.
#pragma once

#include "runtime/device/cpu/row_vectors.h"
#include "runtime/device/cpu/softmax_row.h"

namespace omni::cpu::OMNI_SIMD {

template <typename C>
void RunSoftmaxRow(SoftmaxRow<C>* row) {
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
  row->argmax = static_cast<int32_t>(best);

  const C target_logit = logits[row->target];
  const bool wants_grad = row->grad_scale != C(0);
  const Vec shift = Splat(top);
  Vec sums = {};
  Sweep<C>(n, [&](int64_t j, int64_t count) {
    const Vec e = Keep<C>(Exp(LoadSome<C>(logits + j, count) - shift), count);
    sums += e;
    if (wants_grad) StoreSome(logits + j, e, count);
  });
  const C sum = Sum(sums);
  row->loss = std::log(sum) + (top - target_logit);
  if (!wants_grad) return;
  const Vec scale = Splat(row->grad_scale / sum);
  Sweep<C>(n, [&](int64_t j, int64_t count) {
    StoreSome(logits + j, LoadSome<C>(logits + j, count) * scale, count);
  });
  logits[row->target] -= row->grad_scale;
}

}  // namespace omni::cpu::OMNI_SIMD
