// Where the values of parameters come from when they are not initial: a checkpoint of ours, or a
// folder somebody else wrote.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/tensor/view.h"

namespace omni {

// Elements [begin, begin + data.num_elements()) of the flattened tensor `name`.
struct TensorRange {
  std::string name;
  std::vector<int64_t> shape;  // of the whole tensor
  int64_t begin = 0;           // first element held here
  TensorView data;             // dense; in host memory, unless it says otherwise where it is taken
  // To be saved: stays as it is until the save has ended, so no copy of it is needed.
  bool is_constant = false;
};

// Copies a dense view of a device to the host, after all work on it.
using CopyOut = std::function<absl::Status(const TensorView& from, void* to)>;

class TensorSource {
 public:
  virtual ~TensorSource() = default;

  // Fills `range.data` (any dtype the stored one converts to exactly or by rounding: fp32 to
  // fp64, fp32 to bf16, ...) with the elements it names. NotFound, naming the nearest, if there
  // is no such tensor; InvalidArgument, with both shapes, if it has another shape. Threads may
  // call it side by side.
  virtual absl::Status Read(const TensorRange& range) const = 0;
};

}  // namespace omni
