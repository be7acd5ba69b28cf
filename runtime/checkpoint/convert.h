// From the type a tensor is stored in to the one that is wanted.
#pragma once

#include <cstdint>

#include "runtime/tensor/dtype.h"

namespace omni {

// `count` elements, exactly or rounded to nearest. Neither side need be aligned if the types are
// equal. False, touching nothing, if there is no sensible conversion (integers to anything else).
[[nodiscard]] bool ConvertElements(DType from_dtype, const void* from, DType to_dtype, void* to,
                                   int64_t count);

}  // namespace omni
