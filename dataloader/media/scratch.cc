#include "dataloader/media/scratch.h"

#include <utility>
#include <vector>

namespace omni::dataloader {
namespace {

constexpr size_t kMaxBlocks = 4;
constexpr int64_t kSmallBytes = int64_t{64} << 10;  // malloc keeps these itself

struct Block {
  std::unique_ptr<uint8_t[]> data;
  int64_t capacity = 0;
};

// A cache, not state: nothing depends on what is in it.
std::vector<Block>& KeptBlocks() {
  thread_local std::vector<Block> blocks;
  return blocks;
}

}  // namespace

Scratch::Scratch(int64_t num_bytes) : capacity_(num_bytes) {
  std::vector<Block>& blocks = KeptBlocks();
  Block* best = nullptr;  // the smallest that is large enough
  for (Block& block : blocks) {
    if (block.capacity >= num_bytes && (best == nullptr || block.capacity < best->capacity)) {
      best = &block;
    }
  }
  if (best != nullptr && num_bytes > kSmallBytes) {
    data_ = std::move(best->data);
    capacity_ = best->capacity;
    std::swap(*best, blocks.back());
    blocks.pop_back();
  } else {
    data_ = std::make_unique_for_overwrite<uint8_t[]>(num_bytes);
  }
}

Scratch::~Scratch() {
  if (data_ == nullptr || capacity_ <= kSmallBytes) return;
  std::vector<Block>& blocks = KeptBlocks();
  int64_t kept = capacity_;
  for (const Block& block : blocks) kept += block.capacity;
  if (kept > kMaxKeptBytes) return;
  if (blocks.size() == kMaxBlocks) {  // the oldest gives way: sizes follow the data
    blocks.erase(blocks.begin());
  }
  blocks.push_back({std::move(data_), capacity_});
}

Scratch::Scratch(Scratch&& other) noexcept
    : data_(std::move(other.data_)), capacity_(std::exchange(other.capacity_, 0)) {}

Scratch& Scratch::operator=(Scratch&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(capacity_, other.capacity_);
  return *this;
}

}  // namespace omni::dataloader
