#include "runtime/checkpoint/snapshot.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace omni {

namespace {

// Written from where it is.
bool Stays(const TensorRange& range) {
  return range.is_constant && IsHostMemory(range.data.device);
}

}  // namespace

int64_t Snapshot::BytesOf(absl::Span<const TensorRange> ranges) {
  int64_t num_bytes = 0;
  for (const TensorRange& range : ranges) {
    if (!Stays(range)) num_bytes += range.data.num_bytes();
  }
  return num_bytes;
}

absl::Status Snapshot::Take(absl::Span<const TensorRange> ranges, const CopyOut& copy_out) {
  Release();
  const int64_t num_bytes = BytesOf(ranges);
  if (num_bytes > 0) {
    void* data =
        mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory for a copy of the ", num_bytes,
                       " bytes that change while they are written: ", std::strerror(errno)));
    }
    madvise(data, num_bytes, MADV_HUGEPAGE);
    data_ = static_cast<std::byte*>(data);
    num_bytes_ = num_bytes;
    held_bytes_.store(num_bytes, std::memory_order_relaxed);
  }
  ranges_.assign(ranges.begin(), ranges.end());
  int64_t next = 0;
  for (TensorRange& range : ranges_) {
    OMNI_CHECK(range.data.is_dense());
    if (const int64_t bytes = range.data.num_bytes(); !Stays(range) && bytes > 0) {
      if (IsHostMemory(range.data.device)) {
        std::memcpy(data_ + next, range.data.data, bytes);
      } else {
        OMNI_RETURN_IF_ERROR(copy_out(range.data, data_ + next));
      }
      range.data = TensorView::Dense(data_ + next, range.data.dtype, DeviceKind::kCpu,
                                     {range.data.num_elements()});
      next += bytes;
    }
    ends_.push_back(next);
  }
  return absl::OkStatus();
}

void Snapshot::ReleaseThrough(size_t range) {
  static const int64_t page = sysconf(_SC_PAGESIZE);
  const int64_t end = ends_[range] == num_bytes_ ? num_bytes_ : ends_[range] / page * page;
  if (end <= released_) return;
  OMNI_CHECK_EQ(munmap(data_ + released_, end - released_), 0);
  released_ = end;
  held_bytes_.store(num_bytes_ - released_, std::memory_order_relaxed);
}

void Snapshot::Release() {
  if (released_ < num_bytes_) OMNI_CHECK_EQ(munmap(data_ + released_, num_bytes_ - released_), 0);
  data_ = nullptr;
  num_bytes_ = released_ = 0;
  ranges_.clear();
  ends_.clear();
  held_bytes_.store(0, std::memory_order_relaxed);
}

}  // namespace omni
