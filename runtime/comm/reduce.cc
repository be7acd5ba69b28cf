#include "runtime/comm/reduce.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "runtime/base/check.h"

namespace omni::comm {
namespace {

// A block of the running result stays in the first-level cache while every source passes by.
constexpr int64_t kBlock = 1024;

template <typename T>
using AccumulatorOf = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;

template <ReduceOp kOp, typename A>
A Combine(A a, A b) {
  if constexpr (kOp == ReduceOp::kSum) {
    // Integers wrap, as they would on any device.
    if constexpr (std::is_integral_v<A>) {
      return static_cast<A>(static_cast<std::make_unsigned_t<A>>(a) +
                            static_cast<std::make_unsigned_t<A>>(b));
    } else {
      return a + b;
    }
  } else if constexpr (kOp == ReduceOp::kMax) {
    return b > a || b != b ? b : a;  // NaN wins, wherever it comes from
  } else {
    return b < a || b != b ? b : a;
  }
}

template <typename T, ReduceOp kOp>
void ReduceTyped(absl::Span<const void* const> sources, void* out, int64_t num_elements) {
  using A = AccumulatorOf<T>;
  alignas(64) A total[kBlock];
  for (int64_t begin = 0; begin < num_elements; begin += kBlock) {
    const int64_t count = std::min(kBlock, num_elements - begin);
    const T* first = static_cast<const T*>(sources[0]) + begin;
    for (int64_t i = 0; i < count; ++i) total[i] = static_cast<A>(first[i]);
    for (size_t s = 1; s < sources.size(); ++s) {
      const T* next = static_cast<const T*>(sources[s]) + begin;
      for (int64_t i = 0; i < count; ++i)
        total[i] = Combine<kOp, A>(total[i], static_cast<A>(next[i]));
    }
    T* to = static_cast<T*>(out) + begin;
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(total[i]);
  }
}

template <typename T>
void ReduceOver(ReduceOp op, absl::Span<const void* const> sources, void* out,
                int64_t num_elements) {
  switch (op) {
    case ReduceOp::kSum:
      return ReduceTyped<T, ReduceOp::kSum>(sources, out, num_elements);
    case ReduceOp::kMax:
      return ReduceTyped<T, ReduceOp::kMax>(sources, out, num_elements);
    case ReduceOp::kMin:
      return ReduceTyped<T, ReduceOp::kMin>(sources, out, num_elements);
  }
}

}  // namespace

bool CanReduce(DType dtype) { return dtype != DType::kUInt8; }

void Reduce(DType dtype, ReduceOp op, absl::Span<const void* const> sources, void* out,
            int64_t num_elements) {
  if (num_elements == 0) return;
  if (sources.size() == 1) {  // keeps every bit, NaN payloads included
    if (out != sources[0]) std::memcpy(out, sources[0], num_elements * SizeOf(dtype));
    return;
  }
  switch (dtype) {
    case DType::kFloat64:
      return ReduceOver<double>(op, sources, out, num_elements);
    case DType::kFloat32:
      return ReduceOver<float>(op, sources, out, num_elements);
    case DType::kBFloat16:
      return ReduceOver<BFloat16>(op, sources, out, num_elements);
    case DType::kInt32:
      return ReduceOver<int32_t>(op, sources, out, num_elements);
    case DType::kInt64:
      return ReduceOver<int64_t>(op, sources, out, num_elements);
    case DType::kUInt8:
      break;
  }
  OMNI_CHECK(false && "uint8 is not reduced");
}

}  // namespace omni::comm
