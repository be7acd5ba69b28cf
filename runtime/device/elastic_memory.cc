#include "runtime/device/elastic_memory.h"

#include <sys/mman.h>

#include <algorithm>

#include "runtime/base/check.h"

namespace omni {
namespace {

// What can't be touched ends the program that does. Only the host's memory can be so.
void Protect(const PagePool& pool, std::byte* data, int64_t num_bytes, int protection) {
  if (pool.is_host_memory()) OMNI_CHECK_EQ(mprotect(data, num_bytes, protection), 0);
}

}  // namespace

std::byte* ElasticMemory::data() const { return room_.run_.data + offset_; }

void ElasticMemory::Commit() {
  OMNI_CHECK(!is_committed_);
  OMNI_CHECK(room_.num_committed_ == 0 || room_.turn_ == turn_);
  room_.turn_ = turn_;
  ++room_.num_committed_;
  OMNI_CHECK_OK(room_.pool_.Charge(num_bytes_));  // nobody else has them
  Protect(room_.pool_, data(), num_bytes_, PROT_READ | PROT_WRITE);
  is_committed_ = true;
}

void ElasticMemory::Release() {
  OMNI_CHECK(is_committed_);
  Protect(room_.pool_, data(), num_bytes_, PROT_NONE);
  room_.pool_.Refund(num_bytes_);
  --room_.num_committed_;
  is_committed_ = false;
}

ElasticMemory* ElasticRoom::Add(int32_t turn, int64_t num_bytes) {
  OMNI_CHECK(run_.data == nullptr && turn >= 0 && num_bytes >= 0);
  const int64_t bytes =
      std::max<int64_t>(1, (num_bytes + kPageBytes - 1) / kPageBytes) * kPageBytes;
  if (turn >= static_cast<int32_t>(turn_bytes_.size())) turn_bytes_.resize(turn + 1, 0);
  memories_.push_back(
      std::unique_ptr<ElasticMemory>(new ElasticMemory(*this, turn, turn_bytes_[turn], bytes)));
  turn_bytes_[turn] += bytes;
  return memories_.back().get();
}

absl::Status ElasticRoom::Map() {
  OMNI_CHECK(run_.data == nullptr);
  if (turn_bytes_.empty()) return absl::OkStatus();
  auto run = pool_.Allocate(*std::max_element(turn_bytes_.begin(), turn_bytes_.end()));
  if (!run.ok()) return run.status();
  run_ = *run;
  pool_.Refund(run_.num_bytes);
  Protect(pool_, run_.data, run_.num_bytes, PROT_NONE);
  return absl::OkStatus();
}

ElasticRoom::~ElasticRoom() {
  if (run_.data == nullptr) return;
  for (const auto& memory : memories_) {
    if (memory->is_committed_) memory->Release();
  }
  Protect(pool_, run_.data, run_.num_bytes, PROT_READ | PROT_WRITE);
  OMNI_CHECK_OK(pool_.Charge(run_.num_bytes));
  pool_.Free(run_);
}

}  // namespace omni
