#include "runtime/checkpoint/convert.h"

#include <immintrin.h>

#include <cstring>
#include <type_traits>

namespace omni {
namespace {

template <typename From, typename To>
void ConvertTyped(const From* from, To* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (std::is_same_v<From, BFloat16>) {
      to[i] = To(static_cast<float>(from[i]));
    } else if constexpr (std::is_same_v<To, BFloat16>) {
      to[i] = BFloat16(static_cast<float>(from[i]));
    } else {
      to[i] = static_cast<To>(from[i]);
    }
  }
}

// bf16 to fp32 past the caches: weights are twice the bytes once widened, and nobody reads them
// soon. An ordinary store would first read every line it is about to overwrite.
void WidenStreaming(const BFloat16* from, float* to, int64_t count) {
  int64_t i = 0;
  while (i < count && reinterpret_cast<uintptr_t>(to + i) % sizeof(__m256i) != 0) {
    to[i] = static_cast<float>(from[i]);
    ++i;
  }
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i), wide);
  }
  for (; i < count; ++i) to[i] = static_cast<float>(from[i]);
  _mm_sfence();
}

template <typename From>
bool ConvertFrom(const From* from, DType to_dtype, void* to, int64_t count) {
  switch (to_dtype) {
    case DType::kFloat64:
      ConvertTyped(from, static_cast<double*>(to), count);
      return true;
    case DType::kFloat32:
      if constexpr (std::is_same_v<From, BFloat16>) {
        WidenStreaming(from, static_cast<float*>(to), count);
      } else {
        ConvertTyped(from, static_cast<float*>(to), count);
      }
      return true;
    case DType::kBFloat16:
      ConvertTyped(from, static_cast<BFloat16*>(to), count);
      return true;
    default:
      return false;
  }
}

}  // namespace

bool ConvertElements(DType from_dtype, const void* from, DType to_dtype, void* to, int64_t count) {
  if (count == 0) return true;
  if (from_dtype == to_dtype) {
    std::memcpy(to, from, count * SizeOf(to_dtype));
    return true;
  }
  switch (from_dtype) {
    case DType::kFloat64:
      return ConvertFrom(static_cast<const double*>(from), to_dtype, to, count);
    case DType::kFloat32:
      return ConvertFrom(static_cast<const float*>(from), to_dtype, to, count);
    case DType::kBFloat16:
      return ConvertFrom(static_cast<const BFloat16*>(from), to_dtype, to, count);
    default:
      return false;
  }
}

}  // namespace omni
