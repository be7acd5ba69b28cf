// Storage of packs, kept from step to step: a step's pictures are megabytes, which malloc would
// hand back to the system and fetch again, page fault by page fault.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

namespace omni::dataloader {

// Threads may share one.
class PayloadBuffers {
 public:
  // Of so many zeros, in kept storage if there is any.
  std::vector<uint8_t> Take(int64_t num_bytes);
  // Keeps the storage, as long as all that is kept is no more than twice the largest step given to
  // Limit.
  void Give(std::vector<uint8_t> buffer);
  void Limit(int64_t step_bytes);

  int64_t kept_bytes() const;

 private:
  mutable std::mutex mutex_;  // of everything below it
  std::vector<std::vector<uint8_t>> kept_;
  int64_t kept_bytes_ = 0, max_kept_bytes_ = 0;
};

}  // namespace omni::dataloader
