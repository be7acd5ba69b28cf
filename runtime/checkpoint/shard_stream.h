// A shard of a checkpoint, read from its beginning to its end, once: what it holds and whether it
// is whole come out of one pass.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/base/file.h"
#include "runtime/base/unique_fd.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/safetensors.h"

namespace omni {

class ShardStream {
 public:
  // Elements [begin, begin + count) of the tensor, of one run.
  struct Stretch {
    const std::string* tensor;
    DType dtype;
    int64_t begin, count;
    const std::byte* data;
  };
  using Give = std::function<absl::Status(const Stretch&)>;

  // `index` outlives it. DataLoss if the file is missing or of another size than the manifest says;
  // Unavailable where the storage fails.
  static absl::StatusOr<std::unique_ptr<ShardStream>> Open(const Checkpoint& index, int32_t shard,
                                                           OnBlock on_block);

  // Reads on, up to about `most_bytes` or for about `longest`, and gives what came. DataLoss at the
  // end if the checksum is another, or what the file holds is not what the manifest says.
  absl::Status Next(int64_t most_bytes, absl::Duration longest, const Give& give);
  bool is_over() const { return is_over_; }

 private:
  struct Stored {  // a piece of a tensor, where it lies in the data of the file
    int64_t begin, end;
    DType dtype;
    const std::string* tensor;
    checkpoint_layout::Runs runs;
  };
  ShardStream(const Checkpoint& index, int32_t shard, std::string path, OnBlock on_block);
  absl::Status ParseHeader();
  // Of the data in buffer_, all whole elements; keeps the rest.
  absl::Status GiveData(const Give& give);

  const Checkpoint& index_;
  const int32_t shard_;
  const std::string path_;
  const OnBlock on_block_;
  UniqueFd fd_;
  BlockSize block_size_;
  checkpoint_layout::Checksummer sum_;
  std::vector<char> buffer_;  // read and not yet given
  int64_t data_begin_ = 0;    // in the data, of buffer_, once the header is parsed
  bool has_header_ = false;
  std::vector<Stored> stored_;  // ascending
  size_t next_stored_ = 0;
  bool is_over_ = false;
};

}  // namespace omni
