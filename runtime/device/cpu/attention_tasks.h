// What one task of the attention kernels works on, which keys its tokens see, and packing its rows.
// Included once per SIMD target.
#pragma once

#include "runtime/device/args/attention.h"
#include "runtime/device/cpu/attention_product.h"

namespace omni::cpu::OMNI_SIMD {

inline constexpr int64_t kKeyBlock = 64;
inline constexpr int64_t kColumnBlock = 64;

// Rows of q that see rows of k and v. Tokens and keys are counted from the segment's first ones;
// token t counts as key t + shift for the mask.
struct Segment {
  int32_t query_row, num_queries;
  int32_t key_row, num_keys;
  int32_t shift;
};

template <typename Args>
inline constexpr bool kIsPartial = false;
template <>
inline constexpr bool kIsPartial<AttentionPartialForwardArgs> = true;
template <>
inline constexpr bool kIsPartial<AttentionPartialBackwardArgs> = true;

template <typename Args>
inline int64_t NumSegments(const Args& args) {
  if constexpr (kIsPartial<Args>)
    return args.segments.sizes[0];
  else
    return Most(0, args.cu_seqlens.sizes[0] - 1);
}
template <typename Args>
inline Segment SegmentOf(const Args& args, int64_t index) {
  if constexpr (kIsPartial<Args>) {
    const int32_t* at = static_cast<const int32_t*>(args.segments.data) + 4 * index;
    return {at[0], at[1], at[2], at[3], at[3] - at[1]};
  } else {
    const int32_t* cu = static_cast<const int32_t*>(args.cu_seqlens.data) + index;
    return {cu[0], cu[1] - cu[0], cu[0], cu[1] - cu[0], 0};
  }
}

// Columns of tokens [token_begin, token_end) of one kv head against keys [key_begin, key_end).
struct AttentionTask {
  Segment segment;
  int32_t token_begin, token_end;
  int32_t key_begin, key_end;
  int32_t kv_head;
  int32_t writes;  // backward: bit 0 dq, bit 1 dk and dv
};

struct Geometry {
  int64_t num_kv_heads, group, head_dim, padded_dim;
  int64_t window;  // 0: none
  bool causal;

  // Keys [low, high) of a segment of `length` are seen by a token at t, shift included.
  int64_t Low(int64_t t) const { return window > 0 ? Most(0, t - window + 1) : 0; }
  int64_t High(int64_t t, int64_t length) const {
    if (causal) return t + 1;
    return window > 0 ? Least(length, t + window) : length;
  }
  int64_t TokensPer(int64_t columns) const { return Most(1, columns / group); }
};

template <typename C>
inline Geometry GeometryOf(const TensorView& q, const TensorView& k, const AttentionMask& mask) {
  Geometry g;
  g.num_kv_heads = k.sizes[1];
  g.group = k.sizes[1] == 0 ? 1 : q.sizes[1] / k.sizes[1];
  g.head_dim = q.sizes[2];
  // Multiples of 8 for the transpose, of the vector for the products.
  g.padded_dim = RoundUp(g.head_dim, Most(8, Simd<C>::kWidth));
  g.window = mask.window;
  g.causal = mask.causal != 0;
  return g;
}

// A bump allocator over one piece of a thread's stack: a thread's buffers stay in its caches
// from task to task, and no kernel needs scratch per thread.
struct StackPiece {
  char* next;
  template <typename T>
  T* Take(int64_t count) {
    T* taken = reinterpret_cast<T*>(next);
    next += RoundUp(count * static_cast<int64_t>(sizeof(T)), 64);
    return taken;
  }
};

template <typename S>
inline S* At(const TensorView& view, int64_t token, int64_t head) {
  return static_cast<S*>(view.data) + token * view.strides[0] + head * view.strides[1];
}

// Bounds of the columns of a block, for masking vector by vector.
template <typename C>
struct ColumnBounds {
  using Lane = decltype(typename Simd<C>::Int{}[0] + typename Simd<C>::Int{}[0]);
  alignas(64) Lane low[kColumnBlock];
  alignas(64) Lane high[kColumnBlock];
  int64_t any_low, any_high;  // some column sees a key in [any_low, any_high)
  int64_t all_low, all_high;  // every column sees all keys in [all_low, all_high)

  // Columns [first, first + count) of a chunk that starts at `token_begin`, shift included.
  void Fill(const Geometry& g, int64_t token_begin, int64_t first, int64_t count, int64_t length) {
    any_low = g.Low(token_begin + first / g.group);
    any_high = g.High(token_begin + (first + count - 1) / g.group, length);
    all_low = g.Low(token_begin + (first + count - 1) / g.group);
    all_high = g.High(token_begin + first / g.group, length);
    for (int64_t m = 0; m < kColumnBlock; ++m) {
      const int64_t token = token_begin + (first + Least(m, count - 1)) / g.group;
      low[m] = static_cast<Lane>(g.Low(token));
      high[m] = static_cast<Lane>(g.High(token, length));
    }
  }
  bool SeesNone(int64_t begin, int64_t end) const { return end <= any_low || begin >= any_high; }
  bool SeesAll(int64_t begin, int64_t end) const { return begin >= all_low && end <= all_high; }
};

// scores[k][m] = -infinity where column m does not see key key_begin + k.
template <typename C>
inline void Mask(const ColumnBounds<C>& bounds, int64_t key_begin, int64_t keys, int64_t columns,
                 C* scores) {
  using Vec = typename Simd<C>::Vec;
  using Int = typename Simd<C>::Int;
  const Vec minus_infinity = Splat<C>(-__builtin_inf());
  for (int64_t j = 0; j < columns; j += Simd<C>::kWidth) {
    Int low, high;
    __builtin_memcpy(&low, bounds.low + j, sizeof(low));
    __builtin_memcpy(&high, bounds.high + j, sizeof(high));
    for (int64_t k = 0; k < keys; ++k) {
      const Int key = Int{} + static_cast<typename ColumnBounds<C>::Lane>(key_begin + k);
      C* row = scores + k * kColumnBlock + j;
      const Vec s = Load<C>(row);
      Store(row, ((key >= low) & (key < high)) ? s : minus_infinity);
    }
  }
}

// Rows of keys or values [begin, begin + count) of a segment, packed [count][padded_dim].
template <typename S, typename C>
inline void PackKeys(const TensorView& view, const AttentionTask& task, const Geometry& g,
                     int64_t begin, int64_t count, C* to) {
  for (int64_t k = 0; k < count; ++k)
    CopyRow(At<const S>(view, task.segment.key_row + begin + k, task.kv_head), g.head_dim,
            g.padded_dim, C{1}, to + k * g.padded_dim);
}

// Rows of columns [first, first + count) of the chunk at token_begin, packed [kColumnBlock]
// [padded_dim] times `scale`; rows count.. up to a multiple of 8 and of the vector are zero.
template <typename S, typename C>
inline void PackColumns(const TensorView& view, const AttentionTask& task, const Geometry& g,
                        int64_t token_begin, int64_t first, int64_t count, C scale, C* to) {
  const int64_t padded = RoundUp(count, Most(8, Simd<C>::kWidth));
  for (int64_t m = 0; m < padded; ++m) {
    C* row = to + m * g.padded_dim;
    if (m < count) {
      const int64_t token = task.segment.query_row + token_begin + (first + m) / g.group;
      const int64_t head = task.kv_head * g.group + (first + m) % g.group;
      CopyRow(At<const S>(view, token, head), g.head_dim, g.padded_dim, scale, row);
    } else {
      for (int64_t d = 0; d < g.padded_dim; ++d) row[d] = C{0};
    }
  }
}

// The inverse: rows to the columns' places in `view`, or (kAdds) added to what is there.
template <typename S, bool kAdds, typename C>
inline void UnpackColumns(const TensorView& view, const AttentionTask& task, const Geometry& g,
                          int64_t token_begin, int64_t first, int64_t count, const C* from) {
  for (int64_t m = 0; m < count; ++m) {
    const int64_t token = task.segment.query_row + token_begin + (first + m) / g.group;
    const int64_t head = task.kv_head * g.group + (first + m) % g.group;
    S* row = At<S>(view, token, head);
    for (int64_t d = 0; d < g.head_dim; ++d) {
      if constexpr (kAdds)
        row[d] += from[m * g.padded_dim + d];
      else
        row[d] = static_cast<S>(from[m * g.padded_dim + d]);
    }
  }
}

}  // namespace omni::cpu::OMNI_SIMD
