// Attention of a few queries over the keys and values of one sequence, for generating. A task is a
// query and a head; the loops over keys are long and simple, so left to the compiler.
#include <cmath>
#include <limits>

#include "runtime/device/args/attention.h"
#include "runtime/device/cpu/register.h"
#include "runtime/device/cpu/tasks.h"

namespace omni::cpu {
namespace {

// Scores of a task lie in scratch, one stretch of L for each task.
template <typename T>
int64_t Cached(const AttentionCachedArgs& args, const KernelContext* context) {
  using C = ComputeOf<T>;
  const auto q = args.q_TND.as<const T, 3>(), k = args.k_LKD.as<const T, 3>();
  const auto v = args.v_LKD.as<const T, 3>(), out = args.out_TND.as<const T, 3>();
  const int64_t num_queries = q.sizes[0], num_heads = q.sizes[1], head_dim = q.sizes[2];
  const int64_t num_keys = k.sizes[0], group = num_heads / AtLeast(1, k.sizes[1]);
  Scratch scratch(context == nullptr ? nullptr : context->scratch);
  C* const scores = scratch.Take<C>(num_queries * num_heads * num_keys);
  C* const sums = scratch.Take<C>(num_queries * num_heads * head_dim);
  if (context == nullptr) return scratch.used();
  ForEachTask(*context, num_queries * num_heads, [&](int64_t task) {
    const int64_t t = task / num_heads, head = task % num_heads;
    const int64_t visible = num_keys - num_queries + t + 1;
    const T* const query = q.row(t) + head * q.strides[1];
    C* const score = scores + task * num_keys;
    C largest = -std::numeric_limits<C>::infinity();
    for (int64_t j = 0; j < visible; ++j) {
      const T* const key = k.row(j) + head / group * k.strides[1];
      C sum = 0;
      for (int64_t d = 0; d < head_dim; ++d) {
        sum += static_cast<C>(query[d]) * static_cast<C>(key[d]);
      }
      score[j] = sum * static_cast<C>(args.scale);
      largest = score[j] > largest ? score[j] : largest;
    }
    C* const mixed = sums + task * head_dim;
    for (int64_t d = 0; d < head_dim; ++d) mixed[d] = 0;
    C total = 0;
    for (int64_t j = 0; j < visible; ++j) {
      const C weight = std::exp(score[j] - largest);
      const T* const value = v.row(j) + head / group * v.strides[1];
      total += weight;
      for (int64_t d = 0; d < head_dim; ++d) mixed[d] += weight * static_cast<C>(value[d]);
    }
    T* const to = const_cast<T*>(out.row(t)) + head * out.strides[1];
    for (int64_t d = 0; d < head_dim; ++d) to[d] = static_cast<T>(mixed[d] / total);
  });
  return 0;
}

}  // namespace

void RegisterCachedAttentionKernels(KernelRegistry& registry) {
  registry.Register(MakeEntry<AttentionCachedArgs, Cached<double>>(
      OpId::kAttentionCached, DType::kFloat64, "f64_attention_cached_cpu"));
  registry.Register(MakeEntry<AttentionCachedArgs, Cached<float>>(
      OpId::kAttentionCached, DType::kFloat32, "f32_attention_cached_cpu"));
  registry.Register(MakeEntry<AttentionCachedArgs, Cached<BFloat16>>(
      OpId::kAttentionCached, DType::kBFloat16, "bf16_attention_cached_cpu"));
}

}  // namespace omni::cpu
