// What the loaders hand out: microbatches, and what is known about the step they belong to.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "dataloader/sample_planner.h"
#include "dataloader/step_planner.h"
#include "parallel/data_layout.h"
#include "parallel/encoder_deal.h"
#include "parallel/pack.h"
#include "parallel/step_layout.h"

namespace omni::dataloader {

// One sample in a microbatch; its tokens are segment `i` of the pack for samples[i].
struct SampleRef {
  int32_t source = 0;  // index into the sources
  int64_t index = 0;   // in the source
  int32_t lane = 0;
  int32_t sample = 0;                      // which of the lane's
  int64_t token_begin = 0, token_end = 0;  // in the TokenPack
  int64_t loss_tokens = 0;                 // 0 when blanked
  bool is_blanked = false;
  std::string sample_id;
  std::string group;  // of an evaluation's scores
};

// Costs and counts of a set of samples. A sample with media of several kinds counts for each.
struct SampleCounts {
  int64_t samples = 0;
  int64_t text = 0, image = 0, audio = 0, video = 0;  // samples; text: those without media
  int64_t tokens = 0, loss_tokens = 0;
  std::map<std::string, int64_t> input_rows;  // by encoder: patches, mel frames
  std::map<std::string, int64_t> items;       // by encoder

  SampleCounts& operator+=(const SampleCounts& other);
  SampleCounts& operator-=(const SampleCounts& other);
  bool operator==(const SampleCounts&) const = default;
};
SampleCounts CountsOf(const SamplePlan& plan, const DataConfig& config);

struct Microbatch {
  parallel::TokenPack tokens;
  // By encoder name, where a microbatch stands by itself (evaluation; MoveMediaIntoMicrobatches):
  // every encoder is there then, with no items when it has none.
  std::map<std::string, parallel::MediaPack> media;
  std::vector<SampleRef> samples;  // in the order of the pack
  int64_t loss_tokens = 0;         // targets >= 0
};

// What one rank encodes of one encoder in one group of microbatches. token_rows say where output
// rows stand in the microbatch of their item; who gets them is planned by parallel/reshard.h.
struct EncodeBatch {
  parallel::MediaPack whole;  // items it encodes alone
  // Its shards of those split over its sequence group: items as they are, payload and token_rows of
  // its own rows only (parallel::ShardPack). All ranks of the group have the same items.
  parallel::MediaPack shard;
  std::vector<int32_t> whole_items, shard_items;  // of each its index in StepLayout::items
};

// A sample of a step that is blanked, since a medium of it did not decode somewhere.
struct SampleFailure {
  int32_t lane = 0;
  int32_t sample = 0;  // which of the lane's
  std::string message = {};

  bool operator==(const SampleFailure& other) const {  // the same sample
    return lane == other.lane && sample == other.sample;
  }
};

// A sample with media of any lane, as every rank knows it: what a step lacks without it.
struct PlacedMedia {
  int32_t lane = 0, sample = 0;
  int32_t source = 0;
  std::string sample_id;
  SampleCounts counts;
  bool is_blanked = false;
};

struct StepBatch {
  int64_t step = 0;
  // Of this rank's replica, the same on all its ranks, and as many on every replica; those without
  // a lane are empty (no tokens, cu_seqlens {0}). Their `media` are empty.
  std::vector<Microbatch> microbatches;
  std::vector<std::vector<EncodeBatch>> encodes;  // [encoder][group], of this rank
  parallel::StepLayout layout;                    // of all ranks; the same on all
  // What did not decode on this rank: already applied here; other ranks must be told.
  std::vector<SampleFailure> failed;
  // Targets there are, over all ranks: of what was planned, less the samples that ApplyFailures has
  // heard of. The divisor of the loss, the same whatever the layout.
  int64_t global_loss_tokens = 0;
  int64_t local_loss_tokens = 0;  // in this rank's microbatches
  // Local: of this rank's replica. A blanked sample leaves all of them but `tokens`: its tokens
  // pass through the decoder, and its routers, like any other's.
  SampleCounts local, global;
  std::vector<PlacedMedia> placed_media;  // of all lanes
  std::vector<std::string> source_names;
  // Of all lanes, the same on all ranks: by source, how many samples were drawn for this step and
  // for windows it opened; those left out or cut; those blanked (once ApplyFailures has heard).
  std::vector<int64_t> drawn;
  std::vector<FaultEvent> left_out, blanked;
  // Samples that were left out or cut are told by the first rank of their replica, blanked ones by
  // those that could not decode them.
  std::vector<FaultEvent> faults;
  LoaderState state_after;  // to save once this step's update is committed
};

// Blanks the samples that failed on any rank: no targets, zeros for what this rank encodes of them,
// and they leave the counts. To do it again changes nothing.
// `by_rank`: StepBatch::failed of all ranks (this one, number `rank`, included). Faults that a
// lower rank has as well are dropped, so that summed over ranks each counts once. Not needed where
// a replica is one rank and nobody else encodes for it.
void ApplyFailures(const std::vector<std::vector<SampleFailure>>& by_rank, int32_t rank,
                   StepBatch* batch);

// Where every microbatch is a group, encoded whole by the one rank that reads it: into `media`.
// CHECK-fails elsewhere.
void MoveMediaIntoMicrobatches(StepBatch* batch);

// The lanes of `plan` as the replicas get them, `micro_batch_sequences` in a microbatch, and who
// encodes their media. `data` names config's encoders (see NameEncoders).
parallel::StepLayout LayoutOf(const StepPlan& plan, const DataConfig& config,
                              const parallel::DataLayout& data,
                              const parallel::EncodeCosts& costs = {});
// With those encoders of `config` that it lacks, after the others, whole.
parallel::DataLayout NameEncoders(parallel::DataLayout data, const DataConfig& config);

}  // namespace omni::dataloader
