// Memory at addresses that stay, for tensors that are bound once (weights, gradients) but needed
// only some of the time, in turn.
//
// A room is as large as the largest turn: what belongs to one turn lies side by side, and all turns
// lie on top of each other, so only one can be there at a time. The room is a run of the pool's for
// good: nobody else gets it, and coming and going asks the system for nothing. What is not there
// does not count as used and can't be touched: that ends the program (SIGSEGV). (On a
// GPU nothing keeps it from being touched.)
//
//   turn 0   | chunk 0's matrices | chunk 0's vectors |
//   turn 1   | chunk 1's matrices     | chunk 1's vectors |
//   room     |<------------------------------------------>|
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "runtime/device/page_pool.h"

namespace omni {

class ElasticRoom;

class ElasticMemory {
 public:
  std::byte* data() const;  // once the room is mapped
  bool is_committed() const { return is_committed_; }

  // Makes the memory usable; its contents are unspecified. CHECK-fails if it is there already, or
  // another turn's is.
  void Commit();
  // Contents are lost. The caller has waited for all work that uses it. Must be committed.
  void Release();

 private:
  friend class ElasticRoom;
  ElasticMemory(ElasticRoom& room, int32_t turn, int64_t offset, int64_t num_bytes)
      : room_(room), turn_(turn), offset_(offset), num_bytes_(num_bytes) {}

  ElasticRoom& room_;
  const int32_t turn_;
  const int64_t offset_, num_bytes_;  // multiples of kPageBytes
  bool is_committed_ = false;
};

class ElasticRoom {
 public:
  explicit ElasticRoom(PagePool& pool) : pool_(pool) {}  // which outlives it
  ~ElasticRoom();
  ElasticRoom(const ElasticRoom&) = delete;
  ElasticRoom& operator=(const ElasticRoom&) = delete;

  // Before Map. What it returns lives as long as the room.
  ElasticMemory* Add(int32_t turn, int64_t num_bytes);
  // Errors of PagePool::Allocate.
  absl::Status Map();
  int64_t num_bytes() const { return run_.num_bytes; }

 private:
  friend class ElasticMemory;
  PagePool& pool_;
  std::vector<std::unique_ptr<ElasticMemory>> memories_;
  std::vector<int64_t> turn_bytes_;  // by turn
  PageRun run_;
  int32_t turn_ = 0, num_committed_ = 0;  // whose turn it is, while some are
};

}  // namespace omni
