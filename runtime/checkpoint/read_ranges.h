// Many ranges from one source at once, on several threads: how a rank loads its weights.
#pragma once

#include <functional>

#include "absl/types/span.h"
#include "runtime/checkpoint/tensor_source.h"

namespace omni {

// Long ranges are cut, so that one large embedding does not keep a single thread. The first error
// in the order of the ranges; the others are still read. `tick`, which may be empty, is called by
// the threads after each part.
absl::Status ReadRanges(const TensorSource& source, absl::Span<const TensorRange> ranges,
                        const std::function<void()>& tick = {});

}  // namespace omni
