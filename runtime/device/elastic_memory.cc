#include "runtime/device/elastic_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace omni {

absl::StatusOr<std::unique_ptr<ElasticMemory>> ElasticMemory::Create(PagePool& pool,
                                                                     int64_t num_bytes) {
  OMNI_CHECK_GE(num_bytes, 0);
  const int64_t bytes =
      std::max<int64_t>(1, (num_bytes + kPageBytes - 1) / kPageBytes) * kPageBytes;
  void* data = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("can't reserve ", bytes, " bytes of addresses: ", std::strerror(errno)));
  }
  madvise(data, bytes, MADV_HUGEPAGE);
  return std::unique_ptr<ElasticMemory>(
      new ElasticMemory(pool, static_cast<std::byte*>(data), bytes));
}

ElasticMemory::~ElasticMemory() {
  if (is_committed_) pool_.Refund(num_bytes_);
  munmap(data_, num_bytes_);
}

absl::Status ElasticMemory::Commit() {
  OMNI_CHECK(!is_committed_);
  if (const absl::Status status = pool_.Charge(num_bytes_); !status.ok()) return status;
  OMNI_CHECK_EQ(mprotect(data_, num_bytes_, PROT_READ | PROT_WRITE), 0);
  is_committed_ = true;
  return absl::OkStatus();
}

void ElasticMemory::Release() {
  OMNI_CHECK(is_committed_);
  OMNI_CHECK_EQ(madvise(data_, num_bytes_, MADV_DONTNEED), 0);
  OMNI_CHECK_EQ(mprotect(data_, num_bytes_, PROT_NONE), 0);
  pool_.Refund(num_bytes_);
  is_committed_ = false;
}

}  // namespace omni
