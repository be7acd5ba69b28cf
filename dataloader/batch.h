// What the loaders hand out: microbatches, and what is known about the step they belong to.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "dataloader/sample_planner.h"
#include "dataloader/step_planner.h"
#include "parallel/pack.h"
#include "parallel/step_layout.h"

namespace omni::dataloader {

class MediaDecoder;

// One sample in a microbatch; its tokens are segment `i` of the pack for samples[i].
struct SampleRef {
  int32_t source = 0;  // index into the sources
  int64_t index = 0;   // in the source
  int32_t lane = 0;
  int64_t token_begin = 0, token_end = 0;  // in the TokenPack
  int64_t loss_tokens = 0;                 // 0 when blanked
  bool is_blanked = false;
  std::string sample_id;
  std::string question;
};

// Costs and counts of a set of samples. A sample with media of several kinds counts for each.
struct SampleCounts {
  int64_t samples = 0;
  int64_t text = 0, image = 0, audio = 0, video = 0;  // samples; text: those without media
  int64_t tokens = 0, loss_tokens = 0;
  std::map<std::string, int64_t> input_rows;  // by encoder: patches, mel frames
  std::map<std::string, int64_t> items;       // by encoder

  SampleCounts& operator+=(const SampleCounts& other);
  bool operator==(const SampleCounts&) const = default;
};
SampleCounts CountsOf(const SamplePlan& plan, const DataConfig& config);

struct Microbatch {
  parallel::TokenPack tokens;
  // By encoder name; every encoder is there, with no items when it has none.
  std::map<std::string, parallel::MediaPack> media;
  std::vector<SampleRef> samples;  // in the order of the pack
  int64_t loss_tokens = 0;         // targets >= 0
};

struct StepBatch {
  int64_t step = 0;
  // As many on every rank; those without a lane are empty (no tokens, cu_seqlens {0}).
  std::vector<Microbatch> microbatches;
  parallel::StepLayout layout;  // of all ranks; the same on all
  // Of all ranks, from metadata. A sample blanked at decode is still counted, so that the loss
  // is divided by the same number whatever the layout.
  int64_t global_loss_tokens = 0;
  int64_t local_loss_tokens = 0;  // targets on this rank
  SampleCounts local, global;
  std::vector<FaultEvent> faults;  // of this rank's lanes: their sum over ranks counts each once
  LoaderState state_after;         // to save once this step's update is committed
};

// The lanes of `plan` as the ranks get them: lane l is microbatch sequence l / world of rank
// l % world, `micro_batch_sequences` of them in a microbatch, and media are encoded where they
// are used.
parallel::StepLayout LayoutOf(const StepPlan& plan, const DataConfig& config, int32_t world);

// A microbatch being filled. Token data are written by the constructor; each sample's media by
// Fill, from several threads if wanted; Finish then takes the loss from samples that failed.
class MicrobatchBuilder {
 public:
  struct Placed {
    std::shared_ptr<const SamplePlan> plan;  // shared with the planner's window
    int32_t lane = 0;
  };
  MicrobatchBuilder(const SamplePlanner& planner, std::vector<Placed> samples);

  MicrobatchBuilder(const MicrobatchBuilder&) = delete;
  MicrobatchBuilder& operator=(const MicrobatchBuilder&) = delete;

  int64_t num_samples() const { return static_cast<int64_t>(placed_.size()); }
  bool has_media(int64_t index) const { return !places_[index].empty(); }
  const std::string& sample_id(int64_t index) const { return placed_[index].plan->sample_id; }
  int64_t payload_bytes() const;  // known before Allocate
  void Allocate();                // the payload, zeros; before Fill

  struct FillOptions {
    bool augment = false;
    bool blank_media = false;  // leave them zero, keep the loss
  };
  // Decodes the media of sample `index`. A sample's own fault blanks it; other errors are
  // returned.
  absl::Status Fill(int64_t index, const MediaDecoder& decoder, const FillOptions& options);
  Microbatch Finish(std::vector<FaultEvent>* faults);

 private:
  struct PayloadPlace {
    parallel::MediaPack* pack;
    int64_t item;
  };
  const SamplePlanner& planner_;
  std::vector<Placed> placed_;
  std::vector<std::vector<PayloadPlace>> places_;  // [samples][media]
  std::vector<absl::Status> failures_;             // [samples]
  std::map<const parallel::MediaPack*, int64_t> payload_bytes_;
  Microbatch microbatch_;
};

// One sample as a microbatch of its own, not augmented. DataLoss, starting with its id, if a medium
// does not decode.
absl::StatusOr<Microbatch> DecodeSample(const SamplePlanner& planner, const MediaDecoder& decoder,
                                        std::shared_ptr<const SamplePlan> plan);

}  // namespace omni::dataloader
