// Where the samples of a JSON file lie, in four or five bytes each: a rank holds it for every
// sample there is, also of files of a hundred million.
//
// Ranges come in the order of the file, so each is told from where the one before it ended: bytes
// between them, its size, lines since the other's first, as numbers of 7 bits a byte. Every
// kBlock-th is also kept whole, so that reading one walks past kBlock - 1 others at most (0.1 us).
#pragma once

#include <cstdint>
#include <deque>

namespace omni::dataloader {

struct JsonRange {
  int64_t offset = 0;
  int64_t size = 0;
  int64_t line = 1;  // where it starts, counted from 1
  bool operator==(const JsonRange&) const = default;
};

class RangeTable {
 public:
  // Behind all before it; its line is no earlier either.
  void Append(const JsonRange& range);

  int64_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  JsonRange at(int64_t index) const;  // CHECK-fails unless it is in [0, size)
  int64_t held_bytes() const;

 private:
  static constexpr int64_t kBlock = 32;
  struct Block {
    int64_t end, line;  // of what is before it: where it ends, where its last range starts
    int64_t position;   // of its first number
  };

  void AppendNumber(int64_t number);

  int64_t size_ = 0;
  int64_t end_ = 0, line_ = 1;  // of the last range
  // Neither is moved when it grows, so what is held is what is used.
  std::deque<uint8_t> numbers_;
  std::deque<Block> blocks_;
};

}  // namespace omni::dataloader
