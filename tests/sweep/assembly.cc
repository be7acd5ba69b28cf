#include "tests/sweep/assembly.h"

#include "absl/strings/str_cat.h"

namespace omni::test {

absl::Status Assembly::Add(const std::vector<TensorRange>& ranges) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const TensorRange& range : ranges) {
    int64_t size = 1;
    for (const int64_t dim : range.shape) size *= dim;
    std::vector<double>& whole = tensors_[range.name];
    std::vector<bool>& filled = filled_[range.name];
    whole.resize(size);
    filled.resize(size);
    for (int64_t i = 0; i < range.data.num_elements(); ++i) {
      if (filled[range.begin + i]) {
        return absl::InternalError(absl::StrCat(range.name, ": two ranks save one element"));
      }
      filled[range.begin + i] = true;
      whole[range.begin + i] = range.data.dtype == DType::kFloat64
                                   ? reinterpret_cast<const double*>(range.data.data)[i]
                                   : reinterpret_cast<const float*>(range.data.data)[i];
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Tensors> Assembly::Take() {
  for (const auto& [name, filled] : filled_) {
    for (const bool is_filled : filled) {
      if (!is_filled) return absl::InternalError(absl::StrCat(name, ": no rank saves some of it"));
    }
  }
  return std::move(tensors_);
}

}  // namespace omni::test
