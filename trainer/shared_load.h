// Loading a checkpoint by all ranks of a job together: each byte of its shards is read by one rank,
// once, checked as it comes, and sent to the ranks that need it.
//
// Shard i is rank i's, modulo the number of ranks: with as many as saved it, nearly all that a rank
// reads is its own. In rounds every rank reads some MiB, then all trade what they read (two
// all-to-alls); rounds are short in time, too, so that a rank whose storage is slow shows that it
// gets on, and the others only wait. Memory: a round and what comes of it. Wire: what a rank reads
// for others, once for each of them.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "runtime/base/file.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/comm/communicator.h"

namespace omni {

struct SharedLoadOptions {
  Communicator* comm = nullptr;                     // of all ranks; null: alone
  absl::Duration limit = absl::InfiniteDuration();  // of each call (Work::WaitHost)
  OnBlock on_block = {};                            // of each block read on this rank
};

// The same on all ranks: OK if it was on all, else that of the first rank for which it was not.
// Collective.
absl::Status AgreeOnStatus(const absl::Status& own, const SharedLoadOptions& options);

// The text of rank 0 on all ranks. Collective.
absl::StatusOr<std::string> ShareText(const std::string& text, const SharedLoadOptions& options);

// The checkpoint at rank 0's `path` as Checkpoint::Index, its manifest and state read by rank 0
// alone; its `state` is what it has read of the state before ("": nothing). Collective; the same
// error on all ranks.
absl::StatusOr<std::unique_ptr<Checkpoint>> ShareIndex(const std::string& path,
                                                       const SharedLoadOptions& options,
                                                       const std::string& state = "");

// Fills this rank's `ranges` (dense host memory; any number, also the same elements as another
// rank's). Collective; the same status on all ranks: as Checkpoint::Check and Checkpoint::Open.
// After an error anything may be in them.
absl::Status LoadShared(const Checkpoint& index, absl::Span<const TensorRange> ranges,
                        const SharedLoadOptions& options);

}  // namespace omni
