#include "runtime/tensor/view.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace omni {
namespace {

// A view without elements stays where it is: its address then lies in the memory it was made from,
// by which owners of memory tell whose it is.
TensorView MovedBy(TensorView view, int64_t elements) {
  if (view.num_elements() > 0) {
    view.data = static_cast<std::byte*>(view.data) + elements * SizeOf(view.dtype);
  }
  return view;
}

}  // namespace

TensorView TensorView::Dense(void* data, DType dtype, DeviceKind device,
                             absl::Span<const int64_t> sizes) {
  OMNI_CHECK_LE(sizes.size(), static_cast<size_t>(kMaxDims));
  TensorView view{.data = data, .dtype = dtype, .device = device};
  view.num_dims = static_cast<int8_t>(sizes.size());
  int64_t stride = 1;
  for (int d = view.num_dims - 1; d >= 0; --d) {
    OMNI_CHECK_GE(sizes[d], 0);
    view.sizes[d] = sizes[d];
    view.strides[d] = stride;
    stride *= sizes[d];
  }
  return view;
}

int64_t TensorView::num_elements() const {
  int64_t count = 1;
  for (int d = 0; d < num_dims; ++d) count *= sizes[d];
  return count;
}

bool TensorView::is_dense() const {
  int64_t stride = 1;
  for (int d = num_dims - 1; d >= 0; --d) {
    if (sizes[d] != 1 && strides[d] != stride) return false;
    stride *= sizes[d];
  }
  return true;
}

TensorView TensorView::Slice(int dim, int64_t begin, int64_t count) const {
  OMNI_CHECK(dim >= 0 && dim < num_dims);
  OMNI_CHECK_GE(begin, 0);
  OMNI_CHECK_LE(begin + count, sizes[dim]);
  TensorView view = *this;
  view.sizes[dim] = count;
  return MovedBy(view, begin * strides[dim]);
}

TensorView TensorView::Rows(int64_t begin, int64_t count) const { return Slice(0, begin, count); }

TensorView TensorView::Columns(int64_t begin, int64_t count) const {
  return Slice(num_dims - 1, begin, count);
}

TensorView TensorView::Reshape(absl::Span<const int64_t> new_sizes) const {
  TensorView view = Dense(data, dtype, device, new_sizes);
  OMNI_CHECK_EQ(view.num_elements(), num_elements());
  if (is_dense()) return view;
  // Rows of a wider tensor: the leading dims stay as they are, and what is split or merged behind
  // them lies without gaps.
  int kept = 0;
  for (; kept < num_dims && kept < view.num_dims && view.sizes[kept] == sizes[kept]; ++kept) {
    view.strides[kept] = strides[kept];
  }
  int64_t next_stride = 1;
  for (int d = num_dims - 1; d >= kept; --d) {
    OMNI_CHECK(strides[d] == next_stride || sizes[d] == 1);
    next_stride *= sizes[d];
  }
  return view;
}

std::string TensorView::DebugString() const {
  const absl::string_view name = Name(dtype);
  return absl::StrCat(name, "[", absl::StrJoin(shape(), ", "), "]");
}

}  // namespace omni
