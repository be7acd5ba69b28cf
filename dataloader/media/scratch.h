// Memory for one picture's pixels, kept by its thread for the next.
//
// A picture of a megapixel is 3 MB, which malloc hands back to the system when it is freed: on a
// virtual machine the page faults of getting it again cost as much as resizing the picture (2.5 ms
// instead of 1.4 ms for 640 x 480 to 364 x 280). A thread keeps at most 4 blocks, 64 MiB in all.
#pragma once

#include <cstdint>
#include <memory>

namespace omni::dataloader {

class Scratch {
 public:
  static constexpr int64_t kMaxKeptBytes = int64_t{64} << 20;  // by a thread

  explicit Scratch(int64_t num_bytes);  // not cleared
  ~Scratch();
  Scratch(Scratch&& other) noexcept;
  Scratch& operator=(Scratch&& other) noexcept;

  uint8_t* get() const { return data_.get(); }
  uint8_t& operator[](int64_t i) const { return data_[i]; }

 private:
  std::unique_ptr<uint8_t[]> data_;
  int64_t capacity_ = 0;
};

}  // namespace omni::dataloader
