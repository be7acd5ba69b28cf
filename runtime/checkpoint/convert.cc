#include "runtime/checkpoint/convert.h"

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

template <typename From>
bool ConvertFrom(const From* from, DType to_dtype, void* to, int64_t count) {
  switch (to_dtype) {
    case DType::kFloat64:
      ConvertTyped(from, static_cast<double*>(to), count);
      return true;
    case DType::kFloat32:
      ConvertTyped(from, static_cast<float*>(to), count);
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
