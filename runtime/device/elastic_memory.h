// Memory at an address that stays while the memory comes and goes: for tensors that are bound once
// (weights, gradients) but needed only some of the time.
//
// It counts against the pool's reservation while it is there. Touching it while it is not ends the
// program (SIGSEGV). On the CPU: pages of a mapping of its own. (CUDA: cuMemMap into a reserved
// address range, the same interface.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/device/page_pool.h"

namespace omni {

class ElasticMemory {
 public:
  // Reserves addresses only. ResourceExhausted if the system refuses. `pool` outlives it.
  static absl::StatusOr<std::unique_ptr<ElasticMemory>> Create(PagePool& pool, int64_t num_bytes);
  ~ElasticMemory();
  ElasticMemory(const ElasticMemory&) = delete;
  ElasticMemory& operator=(const ElasticMemory&) = delete;

  std::byte* data() const { return data_; }
  bool is_committed() const { return is_committed_; }

  // Makes the memory usable; its contents are unspecified. ResourceExhausted, with what was asked,
  // used and reserved, beyond the pool's reservation. Must not be committed.
  absl::Status Commit();
  // Gives it back; contents are lost. The caller has waited for all work that uses it. Must be
  // committed.
  void Release();

 private:
  ElasticMemory(PagePool& pool, std::byte* data, int64_t num_bytes)
      : pool_(pool), data_(data), num_bytes_(num_bytes) {}

  PagePool& pool_;
  std::byte* const data_;
  const int64_t num_bytes_;  // a multiple of kPageBytes
  bool is_committed_ = false;
};

}  // namespace omni
