#include "runtime/device/page_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace omni {

absl::StatusOr<std::unique_ptr<PagePool>> PagePool::Create(int64_t reserved_bytes) {
  reserved_bytes = (reserved_bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  void* base = mmap(nullptr, reserved_bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("can't reserve ", reserved_bytes, " bytes of memory: ", std::strerror(errno)));
  }
  // Large pages where the kernel has them: a step touches gigabytes in order.
  madvise(base, reserved_bytes, MADV_HUGEPAGE);
  return std::unique_ptr<PagePool>(
      new PagePool(static_cast<std::byte*>(base), reserved_bytes, nullptr));
}

std::unique_ptr<PagePool> PagePool::Over(std::byte* base, int64_t num_bytes,
                                         std::function<void()> release) {
  return std::unique_ptr<PagePool>(
      new PagePool(base, num_bytes / kPageBytes * kPageBytes, std::move(release)));
}

PagePool::PagePool(std::byte* base, int64_t num_bytes, std::function<void()> release)
    : base_(base), release_(std::move(release)) {
  stats_.reserved_bytes = num_bytes;
  free_by_offset_.emplace(0, num_bytes);
  free_by_size_.emplace(num_bytes, 0);
}

PagePool::~PagePool() {
  if (release_)
    release_();
  else
    munmap(base_, stats_.reserved_bytes);
}

absl::Status PagePool::NoRoomFor(int64_t bytes) const {
  return absl::ResourceExhaustedError(absl::StrCat(
      "no room for ", bytes, " bytes: ", stats_.used_bytes, " of the ", stats_.reserved_bytes,
      " reserved are in use; raise runtime.reserve_gib or make microbatches smaller"));
}

absl::Status PagePool::Charge(int64_t num_bytes) {
  if (stats_.used_bytes + num_bytes > stats_.reserved_bytes) return NoRoomFor(num_bytes);
  stats_.used_bytes += num_bytes;
  stats_.high_water_bytes = std::max(stats_.high_water_bytes, stats_.used_bytes);
  return absl::OkStatus();
}

void PagePool::Refund(int64_t num_bytes) {
  stats_.used_bytes -= num_bytes;
  OMNI_CHECK_GE(stats_.used_bytes, 0);
}

absl::StatusOr<PageRun> PagePool::Allocate(int64_t num_bytes) {
  OMNI_CHECK_GE(num_bytes, 0);
  const int64_t bytes =
      std::max<int64_t>(1, (num_bytes + kPageBytes - 1) / kPageBytes) * kPageBytes;
  // Best fit; among equals the lowest offset, so that a step lays out the same every time.
  const auto fit = free_by_size_.lower_bound({bytes, 0});
  if (fit == free_by_size_.end() || stats_.used_bytes + bytes > stats_.reserved_bytes) {
    return NoRoomFor(bytes);
  }
  const auto [free_bytes, offset] = *fit;
  free_by_size_.erase(fit);
  free_by_offset_.erase(offset);
  if (free_bytes > bytes) {
    free_by_offset_.emplace(offset + bytes, free_bytes - bytes);
    free_by_size_.emplace(free_bytes - bytes, offset + bytes);
  }
  stats_.used_bytes += bytes;
  stats_.high_water_bytes = std::max(stats_.high_water_bytes, stats_.used_bytes);
  ++stats_.num_allocations;
  const PageRun run{base_ + offset, bytes};
  if (on_allocate_) on_allocate_(run);
  return run;
}

void PagePool::Free(PageRun run) {
  if (run.data == nullptr) return;
  int64_t offset = run.data - base_, bytes = run.num_bytes;
  OMNI_CHECK(offset >= 0 && offset + bytes <= stats_.reserved_bytes);
  stats_.used_bytes -= bytes;
  OMNI_CHECK_GE(stats_.used_bytes, 0);
  const auto after = free_by_offset_.lower_bound(offset);
  OMNI_CHECK(after == free_by_offset_.end() || after->first >= offset + bytes);  // freed twice
  if (after != free_by_offset_.end() && after->first == offset + bytes) {
    bytes += after->second;
    free_by_size_.erase({after->second, after->first});
    free_by_offset_.erase(after);
  }
  const auto next = free_by_offset_.lower_bound(offset);
  if (next != free_by_offset_.begin()) {
    const auto before = std::prev(next);
    OMNI_CHECK_LE(before->first + before->second, offset);  // freed twice
    if (before->first + before->second == offset) {
      offset = before->first;
      bytes += before->second;
      free_by_size_.erase({before->second, before->first});
      free_by_offset_.erase(before);
    }
  }
  free_by_offset_.emplace(offset, bytes);
  free_by_size_.emplace(bytes, offset);
  if (on_free_) on_free_(run);
}

}  // namespace omni
