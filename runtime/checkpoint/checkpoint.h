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

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/base/file.h"
#include "runtime/base/side_work.h"
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

  // `on_block` is told of each block that was written; may be empty.
  CheckpointWriter(std::string folder, int32_t rank, int32_t num_ranks, int32_t keep,
                   OnBlock on_block = {});
  ~CheckpointWriter();  // gives up a write under way (SideWork)

  // Copies `ranges` (snapshot.h: memory for a save's time only) and starts writing. Constant ones
  // must outlive the save; if there is no memory for the others it is kFailed. CHECK-fails unless
  // progress() is kIdle. `state` is stored by rank 0 only.
  // `copy_out` copies what is not in host memory.
  void Begin(int64_t step, absl::Span<const TensorRange> ranges, const std::string& state,
             const CopyOut& copy_out = {});
  Progress progress() const;
  int64_t step() const { return step_; }  // of the save under way
  // Of the copy: what is not written yet. From any thread.
  int64_t held_bytes() const { return save_->snapshot.held_bytes(); }
  void WaitWritten();  // blocks until kWritten or kFailed
  // Of a write under way: grows with each block.
  const omni::Progress& blocks() const { return write_->progress(); }
  // Of a write under way that no longer moves: it has failed with `why`, and is left to itself.
  void Abandon(const absl::Status& why);

  // CommitCheckpoint and PruneCheckpoints of this save. Rank 0 calls it once every rank is
  // kWritten.
  absl::Status Commit();
  // Back to kIdle. Returns why writing failed on this rank, if it did; the partial folder is
  // removed by the next Begin of the same step or by RemovePartial.
  absl::Status Finish();

 private:
  struct Save {  // shared with the write, which may be left behind
    std::string folder;
    int32_t rank = 0;
    std::string state;
    Snapshot snapshot;
  };
  static absl::Status Write(Save& save, const OnBlock& tick);

  const std::string folder_;
  const int32_t rank_, num_ranks_, keep_;
  const OnBlock on_block_;
  int64_t step_ = -1;
  std::shared_ptr<Save> save_ = std::make_shared<Save>();
  std::unique_ptr<SideWork> write_;  // null: idle
  std::unique_ptr<SideWork> abandoned_;
  absl::Status given_up_;  // of an abandoned write
};

// Makes the checkpoint real once every rank has written its part. Rank 0 alone.
absl::Status CommitCheckpoint(const std::string& folder, int64_t step, int32_t num_ranks,
                              const OnBlock& on_block = {});
// Removes all checkpoints older than `step` but the newest `keep` - 1 (0: keeps all). Those of
// later steps, which a resume left out as damaged, stay until they are saved anew, and so do those
// for which `may_remove` is false (empty: none).
absl::Status PruneCheckpoints(const std::string& folder, int64_t step, int32_t keep,
                              const OnBlock& on_block = {},
                              const std::function<bool(int64_t step)>& may_remove = {});

// What a checkpoint says of itself, in two small files.
struct CheckpointTexts {
  std::string manifest, state;
};
// DataLoss, naming the file, if one is missing; other errors of ReadFile. `state` is what the
// caller has read before ("": nothing): the file is read all the same unless the manifest has the
// checksum of just that text, as the checkpoint may be another one by now.
absl::StatusOr<CheckpointTexts> ReadCheckpointTexts(const std::string& path,
                                                    const OnBlock& on_block = {},
                                                    const std::string& state = "");

// One committed checkpoint, opened for reading.
class Checkpoint : public TensorSource {
 public:
  struct Shard {
    std::string file;  // in the folder
    checkpoint_layout::Checksum sum;
  };
  // A part of a tensor that is stored as one.
  struct Piece {
    checkpoint_layout::Runs runs;  // elements of the tensor
    int32_t shard = 0;
    std::string key;  // in its file
  };
  struct Tensor {
    std::vector<int64_t> shape;
    std::vector<Piece> pieces;   // of one run, ascending
    std::vector<Piece> columns;  // of several
  };

  // Reads and checks all of it. DataLoss if a shard is missing, of another size, or fails its
  // checksum; it names the file. Unavailable where the storage fails.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& path,
                                                          const OnBlock& on_block = {});
  // Only what the manifest says; no shard is opened, so nothing can be Read (see shared_load.h).
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Index(const std::string& path,
                                                           const CheckpointTexts& texts);

  const std::string& path() const { return path_; }
  int64_t step() const { return step_; }
  int32_t num_ranks() const { return num_ranks_; }  // that saved it
  const std::string& state() const { return state_; }
  const std::vector<Shard>& shards() const { return shards_; }
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  std::vector<std::string> names() const;
  // NotFound, naming the nearest, if there is no such tensor.
  absl::StatusOr<std::vector<int64_t>> Shape(const std::string& name) const;

  // DataLoss if the checkpoint lacks some of the elements.
  absl::Status Read(const TensorRange& range) const override;
  // What Read would say before it reads: NotFound, InvalidArgument, DataLoss.
  absl::Status Check(const TensorRange& range) const;

 private:
  static const Piece* FindPiece(const Tensor& tensor, int64_t element);
  Checkpoint() = default;
  // give(piece, first element in it, how many, index in the range) for all of the range.
  absl::Status ForPieces(
      const TensorRange& range,
      const std::function<absl::Status(const Piece&, int64_t, int64_t, int64_t)>& give) const;
  std::string path_;
  int64_t step_ = 0;
  int32_t num_ranks_ = 0;
  std::string state_;
  std::vector<Shard> shards_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;  // by shard; none of an index
  std::map<std::string, Tensor> tensors_;
};

// Checkpoints of a run, oldest first: (step, path). Partial folders are not listed; one that lost
// its manifest since is, for Open to name. None if there is no such folder; FileError if it can't
// be listed, for who took that for a run without checkpoints would begin it anew.
absl::StatusOr<std::vector<std::pair<int64_t, std::string>>> ListCheckpoints(
    const std::string& folder);
// Removes folders a crash left behind. Rank 0, before the first save.
void RemovePartialCheckpoints(const std::string& folder, const OnBlock& on_block = {});

}  // namespace omni
