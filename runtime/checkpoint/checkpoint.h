// Sharded checkpoints: each rank writes the ranges of tensors it owns, one manifest says where
// everything is, and a checkpoint exists only once the manifest does.
//
//   checkpoints/step-00000100/
//     manifest.json              what is where, sizes and checksums; written last
//     rank-00000.safetensors     ranges as 1-D tensors
//     state.json                 the trainer's own state (opaque text here)
//
// A tensor is stored as (name, global element range), never as "rank 3's piece", so any number
// of ranks can load what any other number saved. Ranges of one tensor given one after the other, of
// one length and at equal distances (columns of a matrix), are stored as one. While a save is under
// way everything lies in `step-00000100.partial/`; Commit writes the manifest, syncs, and renames
// the folder. A crash at any moment leaves a whole checkpoint or none.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/checkpoint/layout.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/checkpoint/snapshot.h"
#include "runtime/checkpoint/tensor_source.h"
#include "runtime/tensor/view.h"

namespace omni {

// Saves in the background, one save at a time. One per rank; all ranks share the folder.
//
//   writer.Begin(step, ranges, state)        copies the data, returns, writes behind
//   ... steps go on; every rank polls progress(), the ranks agree that all are kWritten ...
//   writer.Commit()                          rank 0 alone
//   writer.Finish()                          every rank
class CheckpointWriter {
 public:
  enum class Progress : uint8_t { kIdle, kWriting, kWritten, kFailed };

  CheckpointWriter(std::string folder, int32_t rank, int32_t num_ranks, int32_t keep);
  ~CheckpointWriter();  // waits for a write under way

  // Copies `ranges` (snapshot.h: memory for a save's time only) and starts writing. Constant ones
  // must outlive the save; if there is no memory for the others it is kFailed. CHECK-fails unless
  // progress() is kIdle. `state` is stored by rank 0 only.
  void Begin(int64_t step, absl::Span<const TensorRange> ranges, const std::string& state);
  Progress progress() const { return progress_.load(std::memory_order_acquire); }
  int64_t step() const { return step_; }  // of the save under way
  // Of the copy: what is not written yet. From any thread.
  int64_t held_bytes() const { return snapshot_.held_bytes(); }
  void WaitWritten();  // blocks until kWritten or kFailed

  // Makes the checkpoint real and removes all older ones but the newest `keep` - 1 (0: keeps
  // all). Those of later steps, which a resume left out as damaged, stay until they are saved
  // anew. Rank 0 calls it once every rank is kWritten.
  absl::Status Commit();
  // Back to kIdle. Returns why writing failed on this rank, if it did; the partial folder is
  // removed by the next Begin of the same step or by RemovePartial.
  absl::Status Finish();

 private:
  absl::Status WriteShard();
  absl::Status WriteRanges(const std::string& path,
                           absl::Span<const SafetensorsWriter::Entry> entries);

  const std::string folder_;
  const int32_t rank_, num_ranks_, keep_;
  int64_t step_ = -1;
  Snapshot snapshot_;
  std::string state_;
  absl::Status status_;
  std::atomic<Progress> progress_{Progress::kIdle};
  std::thread thread_;
};

// One committed checkpoint, opened for reading.
class Checkpoint : public TensorSource {
 public:
  // DataLoss if a shard is missing, of another size, or fails its checksum; it names the file.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& path);

  const std::string& path() const { return path_; }
  int64_t step() const { return step_; }
  int32_t num_ranks() const { return num_ranks_; }  // that saved it
  const std::string& state() const { return state_; }
  std::vector<std::string> names() const;
  // NotFound, naming the nearest, if there is no such tensor.
  absl::StatusOr<std::vector<int64_t>> Shape(const std::string& name) const;

  // DataLoss if the checkpoint lacks some of the elements.
  absl::Status Read(const TensorRange& range) const override;

 private:
  struct Piece {
    checkpoint_layout::Runs runs;  // elements of the tensor
    const SafetensorsFile* file;
    std::string key;  // in the file
  };
  struct Tensor {
    std::vector<int64_t> shape;
    std::vector<Piece> pieces;   // of one run, ascending
    std::vector<Piece> columns;  // of several
  };
  static const Piece* FindPiece(const Tensor& tensor, int64_t element);
  Checkpoint() = default;
  std::string path_;
  int64_t step_ = 0;
  int32_t num_ranks_ = 0;
  std::string state_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Tensor> tensors_;
};

// Checkpoints of a run, oldest first: (step, path). Partial folders are not listed; one that lost
// its manifest since is, for Open to name.
std::vector<std::pair<int64_t, std::string>> ListCheckpoints(const std::string& folder);
// Removes folders a crash left behind. Rank 0, before the first save.
void RemovePartialCheckpoints(const std::string& folder);

}  // namespace omni
