#include "dataloader/formats/range_table.h"

#include "runtime/base/check.h"

namespace omni::dataloader {

void RangeTable::AppendNumber(int64_t number) {
  OMNI_CHECK_GE(number, 0);
  auto rest = static_cast<uint64_t>(number);
  for (; rest >= 0x80; rest >>= 7) numbers_.push_back(static_cast<uint8_t>(rest | 0x80));
  numbers_.push_back(static_cast<uint8_t>(rest));
}

void RangeTable::Append(const JsonRange& range) {
  if (size_ % kBlock == 0) blocks_.push_back({end_, line_, static_cast<int64_t>(numbers_.size())});
  AppendNumber(range.offset - end_);
  AppendNumber(range.size);
  AppendNumber(range.line - line_);
  end_ = range.offset + range.size;
  line_ = range.line;
  ++size_;
}

JsonRange RangeTable::at(int64_t index) const {
  OMNI_CHECK(index >= 0 && index < size_);
  const Block& block = blocks_[index / kBlock];
  auto next = numbers_.begin() + block.position;
  const auto number = [&] {
    uint64_t value = 0;
    int shift = 0;
    for (; (*next & 0x80) != 0; ++next, shift += 7) {
      value |= static_cast<uint64_t>(*next & 0x7f) << shift;
    }
    return static_cast<int64_t>(value | static_cast<uint64_t>(*next++) << shift);
  };
  JsonRange range{.offset = block.end, .size = 0, .line = block.line};
  for (int64_t i = index / kBlock * kBlock; i <= index; ++i) {
    range.offset += range.size + number();
    range.size = number();
    range.line += number();
  }
  return range;
}

int64_t RangeTable::held_bytes() const {
  return static_cast<int64_t>(numbers_.size() + blocks_.size() * sizeof(Block));
}

}  // namespace omni::dataloader
